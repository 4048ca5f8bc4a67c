"""What the measured seconds say: medians, and ratios and differences within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.turns import CALLED, CAPTURED
from benchmarks.readings import Reading
from benchmarks.slices import quartiles

Result = dict[str, Any]


def taken(result: Result, how: str, name: str) -> list[float]:
    """Return the seconds a call in every round, [] if there are none.

    ``how``: "called", or "captured", where a contender that no graph can hold counts as called.
    """
    values: list[float] = result[how].get(name) or []
    return result[CALLED].get(name, []) if how == CAPTURED and not values else values


def seconds(result: Result, how: str, name: str) -> Reading | None:
    """Return the seconds a call, or None if the contender was not measured."""
    values = taken(result, how, name)
    return reading(values) if values else None


def reading(values: list[float]) -> Reading:
    """Return the median of values with their quartiles."""
    low, middle, high = quartiles(values)
    return Reading(middle, low, high)


def in_graphs(result: Result, *names: str) -> bool:
    """Say whether all of these were captured."""
    return all(result[CAPTURED].get(name) for name in names)


def _paired(result: Result, how: str, a: str, b: str, join: Callable[[float, float], float]) -> Reading | None:
    """Compare like with like: where no graph holds one of the two, both count as called."""
    if how == CAPTURED and not in_graphs(result, a, b):
        how = CALLED
    pairs = list(zip(taken(result, how, a), taken(result, how, b), strict=False))
    return reading([join(x, y) for x, y in pairs]) if pairs else None


def ratio(result: Result, how: str, slow: str, fast: str) -> Reading | None:
    """Return how many times the time of ``fast`` that of ``slow`` is, round by round; None if one is missing."""
    return _paired(result, how, slow, fast, lambda x, y: x / y)


def difference(result: Result, how: str, more: str, less: str) -> Reading | None:
    """Return how many seconds a call of ``more`` takes beyond one of ``less``, round by round."""
    return _paired(result, how, more, less, lambda x, y: x - y)


def copy_rate(results: dict[str, Any]) -> float | None:
    """Return the bytes a second, read and written, of the device's own copy, or None."""
    return statistics.median(results["copy"]["rates"]) if results.get("copy") else None
