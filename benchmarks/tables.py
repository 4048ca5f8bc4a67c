"""The numbers as rows of text: rates, ratios, goals. `benchmarks.page` and the terminal show the same."""

from __future__ import annotations

from typing import Any

from benchmarks import readings, training
from benchmarks.goals import GOALS
from benchmarks.peers.packed import SUM
from benchmarks.peers.torch_float import FP32
from benchmarks.readings import digits

NONE = "-"
Grid = tuple[list[str], list[list[str]]]


def threads_of(results: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of threads that were measured."""
    return sorted({run["threads"] for result in results for run in result["runs"]})


def _names(results: list[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for result in results:
        names.update(dict.fromkeys(result["families"]))
    return list(names)


def shape_grid(result: dict[str, Any], threads: int) -> Grid:
    """Return one shape: rate, quartiles, ratios to fp32 and of packedbag's sum, cold rate, dropped slices."""
    rows = []
    for name in result["families"]:
        taken = readings.seconds(result, threads, name)
        if taken is None:
            continue
        cold = readings.cold_seconds(result, name) if threads == 1 else None
        run = readings.runs_with(result, threads, name)[0]
        huge = result["huge_pages"][name]
        bags = result["bags"]
        rows.append(
            [
                name,
                digits(taken.value * 1e6),
                digits(bags / taken.value / 1e6),
                f"{digits(bags / taken.high / 1e6)} to {digits(bags / taken.low / 1e6)}",
                _ratio(result, threads, FP32, name),
                _ratio(result, threads, name, SUM),
                NONE if cold is None else digits(bags / cold / 1e6),
                NONE if huge is None else f"{huge:.0%}",
                f"{len(run['waited'][name])} of {len(run['seconds'][name])}",
            ]
        )
    header = [
        f"{result['shape']}, threads {threads}",
        "us a call",
        "M bags/s",
        "quartiles",
        "x fp32",
        "packedbag is",
        "cold M bags/s",
        "on huge pages",
        "slices that waited",
    ]
    return header, rows


def _ratio(result: dict[str, Any], threads: int, slow: str, fast: str) -> str:
    found = readings.ratio(result, threads, slow, fast)
    return NONE if found is None else f"{digits(found.value)}x"


def rates_grid(results: list[dict[str, Any]], threads: int) -> Grid:
    """Return million bags a second of every contender in every shape."""
    rows = []
    for name in _names(results):
        cells = []
        for result in results:
            taken = readings.seconds(result, threads, name)
            cells.append(NONE if taken is None else digits(result["bags"] / taken.value / 1e6))
        rows.append([name, *cells])
    return ["million bags a second", *(result["shape"] for result in results)], rows


def ratios_grid(results: list[dict[str, Any]], threads: int) -> Grid:
    """Return how many times faster packedbag's sum to fp32 is than every contender in every shape."""
    rows = [
        [name, *(_ratio(result, threads, name, SUM) for result in results)] for name in _names(results) if name != SUM
    ]
    return ["packedbag sum fp32 is faster by", *(result["shape"] for result in results)], rows


def cold_grid(results: list[dict[str, Any]]) -> Grid:
    """Return million bags a second of single calls on emptied caches, one thread."""
    rows = []
    for name in _names(results):
        taken = [(result["bags"], readings.cold_seconds(result, name)) for result in results]
        rows.append([name, *(NONE if one is None else digits(bags / one / 1e6) for bags, one in taken)])
    return ["million bags a second, cold", *(result["shape"] for result in results)], rows


def step_grid(results: list[dict[str, Any]], threads: int) -> Grid:
    """Return milliseconds a step, and how many times faster packedbag's with k = 8 is."""
    names = list(dict.fromkeys(name for result in results for run in result["runs"] for name in run["seconds"]))
    rows = []
    for name in names:
        cells = []
        for result in results:
            taken = readings.seconds(result, threads, name)
            faster = _ratio(result, threads, name, training.name_of(8))
            cells.append(NONE if taken is None else f"{digits(taken.value * 1e3)} ms ({faster})")
        rows.append([name, *cells])
    return [f"threads {threads}", *(result["shape"] for result in results)], rows


def phases_grid(results: list[dict[str, Any]]) -> Grid:
    """Return where the milliseconds of packedbag's step with k = 8 go."""
    rows = [
        [name, *(digits(result["phases"][name] * 1e3) for result in results)]
        for name in ("forward", "backward", "update")
    ]
    return ["ms of a step, k = 8", *(result["shape"] for result in results)], rows


def goals_grid(results: dict[str, Any], *, commands: bool) -> Grid:
    """Return every goal: bound, measured, met or why not."""
    rows = []
    for goal in GOALS:
        found = goal.find(results)
        verdict = "not measured" if found is None else "met" if goal.met(found) else f"short: {goal.short}"
        measured = NONE if found is None else str(found)
        rows.append([goal.what, goal.target(), measured, verdict, *([f"`{goal.command}`"] if commands else [])])
    return ["goal", "bound", "measured (quartiles)", "verdict", *(["command"] if commands else [])], rows


def skipped(results: dict[str, Any]) -> dict[str, str]:
    """Return who could not take part, and why."""
    found: dict[str, str] = {}
    for part in ("forward", "step"):
        for result in results.get(part, []):
            found.update(result["skipped"])
    return found


def waiting(results: dict[str, Any]) -> str:
    """Return in words how many slices waited for a core, which tells how quiet the machine was."""
    runs = [run for part in ("forward", "step") for result in results.get(part, []) for run in result["runs"]]
    slices = sum(len(taken) for run in runs for taken in run["seconds"].values())
    waited = sum(len(rounds) for run in runs for rounds in run["waited"].values())
    return f"{waited} of {slices} slices waited for a core."
