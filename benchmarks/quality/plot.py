"""The figures of docs/benchmarks/quality.md: AUC against what it costs, and AUC over epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.methods import METHODS
from benchmarks.quality.table import Group, mark

#: Okabe and Ito's colours (their yellow is too pale for lines: a dark wine instead), which colour-blind readers tell
#: apart; markers tell them apart in grey as well, and votes are dashed.
STYLES: dict[tuple[str, int | None], tuple[str, str]] = {
    ("fp32-adam", None): ("#000000", "s"),
    ("fp32-adagrad", None): ("#7f7f7f", "D"),
    ("ste-adam", None): ("#E69F00", "^"),
    ("int8-adagrad", None): ("#56B4E9", "v"),
    ("frozen", None): ("#999999", "x"),
    ("counter", 8): ("#0072B2", "o"),
    ("counter", 4): ("#009E73", "o"),
    ("counter", 2): ("#CC79A7", "o"),
    ("counter-binary", 2): ("#CC3311", "D"),
    ("vote-flip", 4): ("#009E73", "P"),
    ("vote-flip", 2): ("#CC79A7", "P"),
    ("bit-flip", None): ("#D55E00", "*"),
    ("sign-momentum", None): ("#882255", "h"),
}
OTHER = ("#444444", "d")
#: File name ending, label of the axis, and what lies along it.
COSTS: dict[str, tuple[str, Callable[[Group], float]]] = {
    "bytes": ("table when serving, MB (log)", lambda group: group.mean("serving_bytes") / 1e6),
    "bits": ("bits a weight in training (log)", lambda group: group.bits_a_weight("training_bits")),
}


def label_of(group: Group) -> str:
    """Return the name of a line: method and k."""
    name = METHODS[group.config.method].title if group.config.method in METHODS else group.config.method
    return name + ("" if group.config.bits is None else f", k = {group.config.bits}")


def file_name(data: str, kind: str) -> str:
    """Return a figure's file name."""
    return f"quality_{data}_{kind}.svg"


def draw(data: str, groups: Sequence[Group], folder: Path, ending: str = "svg") -> list[str]:
    """Draw all figures of a data set from the best group of each (method, k, D); return their names."""
    names = []
    for kind in (*COSTS, "curves"):
        figure = _curves(groups, data) if kind == "curves" else _against(groups, data, *COSTS[kind])
        name = file_name(data, kind).removesuffix("svg") + ending
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / name, metadata={"Date": None} if ending == "svg" else None)
        _pyplot().close(figure)
        names.append(name)
    return names


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 9})
    from matplotlib import pyplot as plt

    return plt


def _lines(groups: Sequence[Group]) -> dict[tuple[str, int | None], list[Group]]:
    """Return the groups of each (method, k), in the order of D."""
    found: dict[tuple[str, int | None], list[Group]] = {}
    for group in groups:
        found.setdefault((group.config.method, group.config.bits), []).append(group)
    return {kind: sorted(line, key=lambda group: group.config.embedding_dim) for kind, line in found.items()}


def _against(groups: Sequence[Group], data: str, axis: str, cost: Callable[[Group], float]) -> Any:
    figure, axes = _pyplot().subplots(figsize=(8.6, 4.4), layout="constrained")
    for kind, line in _lines(groups).items():
        color, marker = STYLES.get(kind, OTHER)
        axes.errorbar(
            [cost(group) for group in line],
            [group.mean("test_auc") for group in line],
            yerr=[group.sd("test_auc") or 0.0 for group in line],
            color=color,
            marker=marker,
            label=label_of(line[0]),
            markersize=7,
            linewidth=1,
            capsize=2,
        )
        for group in line:
            axes.annotate(
                str(group.config.embedding_dim),
                (cost(group), group.mean("test_auc")),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7,
                color="#444444",
            )
    level = mark(groups)
    if level is not None:
        axes.axhline(level.mean("test_auc"), color="#000000", linewidth=0.8, linestyle=":")
        note = {"transform": axes.get_yaxis_transform(), "fontsize": 7, "va": "bottom"}
        axes.text(0.005, level.mean("test_auc"), "fp32, D = 16", **note)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(axis)
    axes.set_ylabel("test AUC")
    axes.set_title(f"{data}; numbers are D; bars: standard deviation over seeds", fontsize=9, loc="left")
    _finish(figure, axes)
    return figure


def _curves(groups: Sequence[Group], data: str) -> Any:
    """Draw the test AUC of each epoch, the mean of seeds, of each line's widest table."""
    figure, axes = _pyplot().subplots(figsize=(8.6, 4.4), layout="constrained")
    for kind, line in _lines(groups).items():
        color, marker = STYLES.get(kind, OTHER)
        curves = [[epoch["test_auc"] for epoch in result["curve"]] for result in line[-1].results.values()]
        means = np.mean(curves, axis=0)
        style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1, "linestyle": _dashes(kind)}
        axes.plot(
            range(1, len(means) + 1), means, label=f"{label_of(line[-1])}, D = {line[-1].config.embedding_dim}", **style
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test AUC")
    axes.set_title(f"{data}; mean of seeds", fontsize=9, loc="left")
    _finish(figure, axes)
    return figure


def _dashes(kind: tuple[str, int | None]) -> str:
    return "--" if kind[0] == "vote-flip" else "-"


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
