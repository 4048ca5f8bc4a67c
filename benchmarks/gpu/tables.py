"""The numbers as rows of text: rates, ratios, goals. `benchmarks.gpu.page` and the terminal show the same."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import step, traffic
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.peers.ceiling import CEILING
from benchmarks.gpu.peers.floats import BF16, FP16, FP32
from benchmarks.gpu.peers.packed import MAJORITY, MAJORITY_UNCHECKED, SUM, SUM_BF16, SUM_UNCHECKED
from benchmarks.gpu.readings import copy_rate, in_graphs, ratio, seconds
from benchmarks.gpu.turns import CALLED, CAPTURED
from benchmarks.readings import digits
from benchmarks.shapes import Shape
from packedbag.core.layout import words_per_row

NONE = "-"
Grid = tuple[list[str], list[list[str]]]
Result = dict[str, Any]
PARTS = ("forward", "latency", "step")
FLOATS = {FP32: 4, BF16: 2, FP16: 2}


def names_of(results: list[Result]) -> list[str]:
    """Return everyone who was measured in some shape, in the order of the first."""
    names: dict[str, None] = {}
    for result in results:
        names.update(dict.fromkeys(result.get("families", result[CALLED])))
        names.update(dict.fromkeys(result[CALLED]))
    return [name for name in names if any(name in result[CALLED] for result in results)]


def sector_bytes(shape: Shape, name: str) -> int | None:
    """Return the bytes in sectors that a contender's call moves at least, or None for one that moves others."""
    width = 4 * words_per_row(shape.dim)
    if name in FLOATS:
        return traffic.float_bytes(shape, FLOATS[name])
    outputs = {SUM: 4 * shape.dim, SUM_UNCHECKED: 4 * shape.dim, SUM_BF16: 2 * shape.dim}
    outputs |= dict.fromkeys((MAJORITY, MAJORITY_UNCHECKED, CEILING), width)
    if name not in outputs:
        return None
    return traffic.call_bytes(shape, width, outputs[name])


def shape_grid(result: Result, results: dict[str, Any]) -> Grid:
    """Return one shape: time on the device, rate, part of the copy rate, ratio to fp32, time called from Python."""
    rate, shape, rows = copy_rate(results), Shape.parse(result["shape"]), []
    for name in names_of([result]):
        captured, called = seconds(result, CAPTURED, name), seconds(result, CALLED, name)
        if captured is None or called is None:
            continue
        size = sector_bytes(shape, name)
        part = NONE if size is None or rate is None else digits(size / captured.value / rate)
        graph = "" if in_graphs(result, name) else " (called)"
        rows.append(
            [
                name,
                digits(captured.value * 1e6) + graph,
                f"{digits(captured.low * 1e6)} to {digits(captured.high * 1e6)}",
                digits(result["bags"] / captured.value / 1e6),
                part,
                _times(result, CAPTURED, FP32, name),
                digits(called.value * 1e6),
                _times(result, CALLED, FP32, name),
            ]
        )
    header = [result["shape"], "us a call", "quartiles", "M bags/s", "of the copy rate", "x fp32"]
    return [*header, "us called from Python", "x fp32, called"], rows


def _times(result: Result, how: str, slow: str, fast: str) -> str:
    found = ratio(result, how, slow, fast)
    return NONE if found is None else f"{digits(found.value)}x"


def summary_grid(results: list[Result]) -> Grid:
    """Return million bags a second of every contender in every shape, on the device."""
    rows = []
    for name in names_of(results):
        found = [(result["bags"], seconds(result, CAPTURED, name)) for result in results]
        rows.append([name, *(NONE if one is None else digits(bags / one.value / 1e6) for bags, one in found)])
    return ["million bags a second", *(result["shape"] for result in results)], rows


def latency_grid(result: Result) -> Grid:
    """Return microseconds of one call: the host's, and the device's in a graph."""
    rows = []
    for name in names_of([result]):
        called = seconds(result, CALLED, name)
        captured = seconds(result, CAPTURED, name) if in_graphs(result, name) else None
        if called is not None:
            span = f"{digits(called.low * 1e6)} to {digits(called.high * 1e6)}"
            graph = NONE if captured is None else digits(captured.value * 1e6)
            rows.append([name, digits(called.value * 1e6), span, graph])
    return [result["shape"], "us a call", "quartiles", "us in a graph"], rows


def step_grid(results: list[Result]) -> Grid:
    """Return milliseconds a step, how many times faster packedbag with k = 8 is, and what a step holds at its peak."""
    rows = []
    for name in names_of(results):
        cells = []
        for result in results:
            taken, peak = seconds(result, CALLED, name), result["peak_bytes"].get(name)
            faster = _times(result, CALLED, name, step.name_of(8))
            cells.append(NONE if taken is None else f"{digits(taken.value * 1e3)} ms ({faster})")
            cells.append(NONE if taken is None or peak is None else f"{peak / 1e6:.0f} MB")
        rows.append([name, *cells])
    return ["a step", *(cell for result in results for cell in (result["shape"], "peak above"))], rows


def phases_grid(results: list[Result]) -> Grid:
    """Return where the milliseconds of packedbag's step with k = 8 go."""
    shown = [result for result in results if result["phases"]]
    rows = [[name, *(digits(result["phases"][name] * 1e3) for result in shown)] for name in step.PHASES]
    return ["ms of a step, k = 8", *(result["shape"] for result in shown)], rows if shown else []


def goals_grid(results: dict[str, Any], *, commands: bool) -> Grid:
    """Return every goal: bound, measured, verdict, why where it is short, and the command that measures it."""
    rows = []
    for goal in GOALS:
        found = goal.find(results)
        verdict = "not measured" if found is None else "met" if goal.met(found) else "short"
        why = goal.why(results) if verdict == "short" else ""
        measured = NONE if found is None else str(found)
        command = [f"`{goal.command}`"] if commands else []
        rows.append([goal.what, goal.target(), measured, verdict, why, *command])
    header = ["goal", "bound", "measured (quartiles)", "verdict", "why"]
    return [*header, *(["command"] if commands else [])], rows


def left_out(results: dict[str, Any]) -> dict[str, str]:
    """Return who took no part, or none in a graph, and why; shapes are named where only some are concerned."""
    found: dict[str, str] = {}
    for part in PARTS:
        for result in results.get(part, []):
            found.update(result["skipped"])
            for name, why in result["failed"].items():
                found[f"{name}, {part} {result['shape']}"] = why
            for name, why in result["uncaptured"].items():
                found[f"{name}, {part} {result['shape']}, in a graph"] = why
    return found


def broken(results: dict[str, Any]) -> list[str]:
    """Return those of packedbag and of the judge's own who failed: a run with one of them is no success."""
    return [
        f"{name}, {part} {result['shape']}: {why}"
        for part in PARTS
        for result in results.get(part, [])
        for name, why in result["failed"].items()
        if name.startswith("packedbag") or name == CEILING or why.startswith("Wrong")
    ]
