"""Why a goal is missed, said from the numbers of the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.peers.floats import FP32
from benchmarks.gpu.peers.packed import SUM
from benchmarks.gpu.readings import copy_rate, seconds
from benchmarks.gpu.shapes import MAIN, ONE_BAG, SMALL_STEP
from benchmarks.gpu.turns import CAPTURED
from benchmarks.readings import digits, shape_of
from benchmarks.shapes import Shape

Results = dict[str, Any]
Why = Callable[[Results], str]


def _microseconds(result: dict[str, Any], how: str, name: str) -> str:
    found = seconds(result, how, name)
    return "?" if found is None else digits(found.value * 1e6)


def against(shape: str, slow: str, fast: str) -> Why:
    """Return what both take, where the bound is another kernel's time."""

    def why(results: Results) -> str:
        result = shape_of(results["forward"], shape)
        assert result is not None
        return (
            f"a call takes {_microseconds(result, CAPTURED, fast)} us on the device and {slow} "
            f"{_microseconds(result, CAPTURED, slow)}: what is between them is counting, and what a launch does besides"
        )

    return why


def against_traffic(shape: str, name: str, count: Callable[[Shape], int], peer: str | None = None) -> Why:
    """Return what a call takes and what its bytes take at the copy rate, and so what ratio to ``peer`` is in reach."""

    def why(results: Results) -> str:
        result, rate = shape_of(results["forward"], shape), copy_rate(results)
        assert result is not None
        text = f"a call takes {_microseconds(result, CAPTURED, name)} us on the device"
        if peer is not None:
            text += f", the peer {_microseconds(result, CAPTURED, peer)}"
        if rate is None:
            return text
        size = count(Shape.parse(shape))
        least = size / rate
        text += f"; its {size / 1e6:.0f} MB in sectors of 32 bytes take {digits(least * 1e6)} us at the copy rate"
        slow = None if peer is None else seconds(result, CAPTURED, peer)
        return text if slow is None else f"{text}, which would be {digits(slow.value / least)}x"

    return why


def phases(results: Results) -> str:
    """Return where the milliseconds of packedbag's step go, on the table that was compared."""
    for shape in (MAIN, SMALL_STEP):
        result = shape_of(results["step"], shape)
        if result is not None and result["phases"]:
            parts = ", ".join(f"{name} {digits(value * 1e3)}" for name, value in result["phases"].items())
            return f"ms of packedbag's step: {parts}"
    return "packedbag's phases were not measured"


def one_bag(how: str, *more: str) -> Why:
    """Return what one bag takes, both sides, and ``more`` contenders."""

    def why(results: Results) -> str:
        result = shape_of(results["latency"], ONE_BAG)
        assert result is not None
        parts = (f"{name} {_microseconds(result, how, name)}" for name in (SUM, FP32, *more))
        return f"us a call: {', '.join(parts)}"

    return why


def room(results: Results) -> str:
    """Return what a row takes and what there is."""
    capacity = results["capacity"]
    memory = capacity.get("memory_bytes") or capacity.get("free_bytes") or 0
    there = f"; {memory / 1e9:.0f} GB were free" if memory else ""
    return f"a row takes {capacity['row_bytes']} bytes{there}"
