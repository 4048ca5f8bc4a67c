"""The figures of a card's page: rates of bags, and times of a training step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import two_lines
from benchmarks.gpu import step
from benchmarks.gpu.peers.boolean import BOOL
from benchmarks.gpu.peers.ceiling import CEILING
from benchmarks.gpu.peers.floats import BF16, FP32
from benchmarks.gpu.peers.packed import MAJORITY, SUM
from benchmarks.gpu.readings import seconds
from benchmarks.gpu.turns import CALLED, CAPTURED
from benchmarks.readings import digits

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
    """Draw one of `FIGURES` as SVG: groups of bars, one group a shape; the slowest and fastest differ a hundredfold."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 9})
    from matplotlib import pyplot as plt

    title, value = FIGURES[name]
    contenders = SHOWN if name == "forward" else STEPS
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    width = 0.86 / len(contenders)
    for column, (contender, color) in enumerate(contenders):
        heights = [value(result, contender) for result in results]
        places = [group + (column - (len(contenders) - 1) / 2) * width for group in range(len(results))]
        axes.bar(places, heights, width=width * 0.95, color=color, label=contender)
        for place, height in zip(places, heights, strict=True):
            if height:
                axes.text(place, height * 1.02, digits(height), ha="center", va="bottom", fontsize=6)
    axes.set_yscale("log")
    axes.set_ylabel(title)
    axes.set_xticks(range(len(results)), [two_lines(result["shape"]) for result in results], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
