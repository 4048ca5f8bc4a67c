"""What the pictures of a comparison show, apart from how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from packedbag.report.compare import Report
from packedbag.report.memory import human

#: The parts of a step's peak, and a colour for each: Okabe and Ito's, told apart in grey as well.
PARTS = {"table": "#0072B2", "optimizer state": "#56B4E9", "gradient": "#E69F00", "temporary": "#BBBBBB"}
#: Where the longest bar is more than so many times the shortest, which then is less than 2 % of the width, the axis is
#: logarithmic. Parts of a bar would lie on such an axis: it is drawn in one piece, in a colour of its own.
LOG_FROM = 50
WHOLE = "#7A5195"


@dataclass
class Bar:
    """One bar: whose it is, its parts in the order of `PARTS`, its sum, and whether that was measured."""

    name: str
    optimizer: str
    parts: list[int]
    measured: bool

    @property
    def total(self) -> int:
        """Length of the bar."""
        return sum(self.parts)


@dataclass
class Panel:
    """Bars of one quantity."""

    quantity: str
    bars: list[Bar]

    @property
    def title(self) -> str:
        """The quantity, and that its axis is logarithmic."""
        return self.quantity + (" (log scale)" if self.log else "")

    @property
    def log(self) -> bool:
        """Whether the axis is logarithmic."""
        totals = [bar.total for bar in self.bars]
        return max(totals) > LOG_FROM * min(totals)

    def pieces(self, bar: Bar) -> list[tuple[float, float, str]]:
        """Return where each piece of a bar begins and ends, in widths of the longest bar, and its colour."""
        totals = [each.total for each in self.bars]
        longest = max(*totals, 1)
        if self.log:
            # The shortest bar has a length, too: a third of it is the left end.
            low = min(totals) / 3
            return [(0.0, math.log(bar.total / low) / math.log(longest / low), WHOLE)]
        ends = [sum(bar.parts[: number + 1]) / longest for number in range(len(bar.parts))]
        return list(zip([0.0, *ends], ends, PARTS.values(), strict=False))

    def labels(self) -> list[str]:
        """Return what stands beside each bar: bytes, and how many times the last kind's they are."""
        last = self.bars[-1]
        found = []
        for bar in self.bars:
            times = "" if bar is last or not last.total else f", {times_text(bar.total / last.total)}"
            found.append(human(bar.total) + times)
        return found

    def marks(self, bar: Bar) -> bool:
        """Say whether a bar was not measured, as others were."""
        return not bar.measured and any(other.measured for other in self.bars)


def times_text(ratio: float) -> str:
    """Return a ratio for reading.

    >>> times_text(32), times_text(9.18), times_text(0.5)
    ('32x', '9.2x', '0.5x')
    """
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.2g}x"


def legend(report: Report) -> str:
    """Return what else a reader must know: where numbers come from, and what they are multiples of."""
    how = "measured" if any(line.measured for line in report.lines) else "computed"
    return f"{how}; 2x: twice {report.lines[-1].kind.title}" if len(report.lines) > 1 else how


def panels(report: Report) -> Sequence[Panel]:
    """Return the peak of a step by its parts, the table, and the checkpoint."""
    step, table, checkpoint = [], [], []
    for line in report.lines:
        costs = line.best
        rest = max(costs.peak - costs.table - costs.state - costs.gradient, 0)
        about = (line.kind.title, line.kind.optimizer)
        parts = [costs.table, costs.state, costs.gradient, rest]
        measured = line.measured is not None
        step.append(Bar(*about, parts, measured))
        table.append(Bar(*about, [costs.table], measured))
        checkpoint.append(Bar(*about, [costs.table, costs.checkpoint - costs.table], measured))
    return Panel("peak in a training step", step), Panel("table", table), Panel("checkpoint", checkpoint)
