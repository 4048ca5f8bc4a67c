"""The figures of docs/benchmarks/cpu.md: rates of bags, and times of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import readings, training
from benchmarks.peers.boolean import BOOL
from benchmarks.peers.ceiling import CEILING
from benchmarks.peers.packed import MAJORITY, SUM
from benchmarks.peers.torch_float import FP32

LOW_BIT = "fastest low-bit peer"
SHOWN = (
    (BOOL, "#bfbfbf"),
    (FP32, "#7f7f7f"),
    (LOW_BIT, "#f4b183"),
    (SUM, "#5b9bd5"),
    (MAJORITY, "#1f4e79"),
    (CEILING, "#000000"),
)
STEPS = (
    (training.FBGEMM, "#f4b183"),
    (training.TORCH, "#7f7f7f"),
    (training.name_of(8), "#1f4e79"),
    (training.name_of(2), "#5b9bd5"),
)


def _rate(result: dict[str, Any], name: str) -> float:
    chosen = readings.fastest(result, 1, "low-bit") if name == LOW_BIT else name
    taken = readings.seconds(result, 1, chosen) if chosen else None
    return 0.0 if taken is None else result["bags"] / taken.value / 1e6


def _milliseconds(result: dict[str, Any], name: str) -> float:
    taken = readings.seconds(result, 1, name)
    return 0.0 if taken is None else taken.value * 1e3


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any], str], float]]] = {
    "forward": ("million bags a second, 1 thread", _rate),
    "step": ("milliseconds a training step, 1 thread", _milliseconds),
}


def two_lines(shape: str) -> str:
    """Return a shape as it stands below its bars: table, then batch."""
    rows, dim, bags, length = shape.split("x", 3)
    return f"{rows} x {dim}\n{bags} x {length}"


def draw(name: str, results: list[dict[str, Any]], path: Path) -> None:
    """Draw one of `FIGURES` as SVG: groups of bars, one group a shape."""
    title, value = FIGURES[name]
    contenders = SHOWN if name == "forward" else STEPS
    # In rates the slowest and the fastest differ a thousandfold.
    draw_bars(
        [result for result in results if result["bags"] > 1],
        contenders,
        value,
        path,
        title=title,
        logarithmic=name == "forward",
        legend_columns=len(contenders) if name == "forward" else 2,
    )


def draw_bars(
    results: list[dict[str, Any]],
    contenders: Sequence[tuple[str, str]],
    value: Callable[[dict[str, Any], str], float],
    path: Path,
    *,
    title: str,
    logarithmic: bool,
    legend_columns: int,
) -> None:
    """Draw groups of bars as SVG, one group a result, a bar for each of the ``contenders`` (name, color)."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    width = 0.86 / len(contenders)
    for column, (contender, color) in enumerate(contenders):
        heights = [value(result, contender) for result in results]
        places = [group + (column - (len(contenders) - 1) / 2) * width for group in range(len(results))]
        axes.bar(places, heights, width=width * 0.95, color=color, label=contender)
        for place, height in zip(places, heights, strict=True):
            if height:
                axes.text(place, height * 1.02, readings.digits(height), ha="center", va="bottom", fontsize=6)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylabel(title)
    axes.set_xticks(range(len(results)), [two_lines(result["shape"]) for result in results], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, ncols=legend_columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
