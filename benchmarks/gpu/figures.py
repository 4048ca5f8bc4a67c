"""The figures of a card's page: rates of bags, and times of a training step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import draw_bars
from benchmarks.gpu import step
from benchmarks.gpu.peers.boolean import BOOL
from benchmarks.gpu.peers.ceiling import CEILING
from benchmarks.gpu.peers.floats import BF16, FP32
from benchmarks.gpu.peers.packed import MAJORITY, SUM
from benchmarks.gpu.readings import seconds
from benchmarks.gpu.turns import CALLED, CAPTURED

SHOWN = (
    (BOOL, "#bfbfbf"),
    (FP32, "#7f7f7f"),
    (BF16, "#f4b183"),
    (SUM, "#5b9bd5"),
    (MAJORITY, "#1f4e79"),
    (CEILING, "#000000"),
)
STEPS = ((step.DENSE, "#bfbfbf"), (step.SPARSE, "#7f7f7f"), (step.name_of(8), "#1f4e79"), (step.name_of(4), "#5b9bd5"))


def _rate(result: dict[str, Any], name: str) -> float:
    taken = seconds(result, CAPTURED, name)
    return 0.0 if taken is None else result["bags"] / taken.value / 1e6


def _milliseconds(result: dict[str, Any], name: str) -> float:
    taken = seconds(result, CALLED, name)
    return 0.0 if taken is None else taken.value * 1e3


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any], str], float]]] = {
    "forward": ("million bags a second", _rate),
    "step": ("milliseconds a training step", _milliseconds),
}


def draw(name: str, results: list[dict[str, Any]], path: Path) -> None:
    """Draw one of `FIGURES` as SVG; the slowest and the fastest differ a hundredfold."""
    title, value = FIGURES[name]
    contenders = SHOWN if name == "forward" else STEPS
    draw_bars(results, contenders, value, path, title=title, logarithmic=True, legend_columns=3)
