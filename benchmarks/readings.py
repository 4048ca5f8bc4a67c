"""What the measured seconds say: medians, spreads, and ratios within rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.slices import quartiles

#: With fewer rounds in which nobody waited, all rounds count, by CPU time with one thread, and the reading is marked.
ENOUGH = 3


@dataclass(frozen=True)
class Reading:
    """A median of rounds with its quartiles; ``busy`` if too few rounds ran without waiting for a core."""

    value: float
    low: float
    high: float
    busy: bool = False
    detail: str = ""

    def __str__(self) -> str:
        text = f"{digits(self.value)} ({digits(self.low)} to {digits(self.high)})"
        return text + (f", {self.detail}" if self.detail else "") + (" [machine was busy]" if self.busy else "")


def digits(value: float) -> str:
    """Return three digits of a number, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def shape_of(results: list[dict[str, Any]], shape: str) -> dict[str, Any] | None:
    """Return what was measured for a shape, or None."""
    return next((result for result in results if result["shape"] == shape), None)


def runs_with(result: dict[str, Any], threads: int, *names: str) -> list[dict[str, Any]]:
    """Return the groups, with this number of threads, in which all these contenders took turns."""
    return [
        run for run in result["runs"] if run["threads"] == threads and all(name in run["seconds"] for name in names)
    ]


def _kept(run: dict[str, Any], *names: str) -> tuple[list[int], bool]:
    """Return the rounds that count for all these contenders, and whether waiting left too few."""
    rounds = range(len(run["seconds"][names[0]]))
    waited = {number for name in names for number in run["waited"][name]}
    kept = [number for number in rounds if number not in waited]
    return (kept, False) if len(kept) >= ENOUGH else (list(rounds), True)


def _taken(run: dict[str, Any], name: str, kept: list[int], busy: bool) -> list[float]:
    """Return the seconds of these rounds: where a busy machine left too few, the thread's own, if it was alone."""
    own = run["own"].get(name) if busy else None
    return [(own or run["seconds"][name])[number] for number in kept]


def seconds(result: dict[str, Any], threads: int, name: str) -> Reading | None:
    """Return the seconds a call, or None if the contender was not measured."""
    found = runs_with(result, threads, name)
    if not found:
        return None
    # A contender of every group: the first group, as those that are in one group only.
    kept, busy = _kept(found[0], name)
    low, middle, high = quartiles(_taken(found[0], name, kept, busy))
    return Reading(middle, low, high, busy)


def ratio(result: dict[str, Any], threads: int, slow: str, fast: str) -> Reading | None:
    """Return how many times the time of ``fast`` that of ``slow`` is, round by round; None if they never met."""
    found = runs_with(result, threads, slow, fast)
    if not found:
        return None
    run = found[0]
    kept, busy = _kept(run, slow, fast)
    pairs = zip(_taken(run, slow, kept, busy), _taken(run, fast, kept, busy), strict=True)
    low, middle, high = quartiles([a / b for a, b in pairs])
    return Reading(middle, low, high, busy)


def between_threads(result: dict[str, Any], name: str) -> Reading | None:
    """Return how many times faster two threads are than one; rounds alternate between them."""
    one, two = runs_with(result, 1, name), runs_with(result, 2, name)
    if not one or not two:
        return None
    busy = _kept(one[0], name)[1] or _kept(two[0], name)[1]
    waited = {*one[0]["waited"][name], *two[0]["waited"][name]} if not busy else set()
    pairs = zip(one[0]["seconds"][name], two[0]["seconds"][name], strict=True)
    values = [a / b for number, (a, b) in enumerate(pairs) if number not in waited]
    if not values:
        return None
    low, middle, high = quartiles(values)
    return Reading(middle, low, high, busy or len(values) < ENOUGH)


def cold_seconds(result: dict[str, Any], name: str) -> float | None:
    """Return the median seconds of a call on emptied caches, one thread, or None."""
    for run in runs_with(result, 1, name):
        if run["cold"].get(name):
            return statistics.median(run["cold"][name])
    return None


def fastest(result: dict[str, Any], threads: int, family: str) -> str | None:
    """Return the contender of a family with the least time beside packedbag, or None."""
    times = {
        name: reading.value
        for name, kind in result["families"].items()
        if kind == family and (reading := seconds(result, threads, name)) is not None
    }
    return min(times, key=times.__getitem__) if times else None
