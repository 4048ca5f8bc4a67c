"""A picture of a comparison, drawn by matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from packedbag.core.errors import MissingExtraError
from packedbag.io.atomic import replacing
from packedbag.report.bars import PARTS, Panel, legend, panels
from packedbag.report.compare import Report

#: Formats, by the ending of the file.
ENDINGS = ("png", "svg", "pdf")
DOTS_PER_INCH = 160


def require() -> None:
    """Raise `MissingExtraError` unless matplotlib is installed: to be called before minutes of measuring."""
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtraError("A plot", "matplotlib", "plot") from None
    mpl.use("Agg")  # whatever the user's settings say: there may be no display
    from matplotlib import pyplot as plt

    return plt


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw the bars of a report.

    Args:
        report: computed; what was measured is drawn instead where there is something.
        path: whose ending, one of `ENDINGS`, is the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written; an older one is unchanged.
    """
    plt = _pyplot()
    fixed = {"svg.fonttype": "none", "svg.hashsalt": "packedbag", "font.size": 9}
    ending = Path(path).suffix.lstrip(".").lower()
    with plt.rc_context(fixed):
        height = 1.5 + 0.42 * len(report.lines)
        figure, axes = plt.subplots(
            1, 3, figsize=(11, height), width_ratios=(1.6, 1, 1), sharey=True, layout="constrained"
        )
        try:
            for place, panel in zip(axes, panels(report), strict=True):
                _bars(place, panel)
            figure.suptitle(report.title, x=0.01, ha="left", fontsize=10)
            handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in PARTS.values()]
            figure.legend(handles, PARTS, loc="outside lower left", ncols=len(PARTS), frameon=False)
            note = figure.legend([plt.Line2D([], [], alpha=0)], [legend(report)], loc="outside lower right")
            note.set_frame_on(False)
            with replacing(path) as file:
                # A date would make two files of one picture differ.
                about = {"Date": None} if ending == "svg" else {"CreationDate": None} if ending == "pdf" else None
                figure.savefig(file, format=ending, dpi=DOTS_PER_INCH, metadata=about)
        finally:
            plt.close(figure)


def _bars(axes: Any, panel: Panel) -> None:
    places = range(len(panel.bars))
    for place, bar, label in zip(places, panel.bars, panel.labels(), strict=True):
        pieces = panel.pieces(bar)
        for start, end, color in pieces:
            marks = {"hatch": "////", "edgecolor": "white"} if panel.marks(bar) else {}
            axes.barh(place, end - start, left=start, color=color, height=0.66, linewidth=0, **marks)
        label += " (computed)" if panel.marks(bar) else ""
        axes.annotate(label, (pieces[-1][1], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axes.set_yticks(places, [f"{bar.name}\n{bar.optimizer}" for bar in panel.bars], fontsize=8)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_xlim(0, 1.6)  # room for the text behind the longest bar
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
