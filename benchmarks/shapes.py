"""What is measured: tables, batches, and how often each row is asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ZIPF = 1.05
#: Different sets of indices, so that no run finds its rows in the cache because the call before it asked for them.
SETS = 31
#: Calls in a slice at least: one bag takes microseconds, and reading the clock a tenth of one.
CALLS = 8192


@dataclass(frozen=True)
class Shape:
    """A table of ``rows`` x ``dim`` and a batch of ``bags`` x ``length``; rows uniform, or bounded Zipf."""

    rows: int
    dim: int
    bags: int
    length: int
    zipf: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Return the shape of a name such as ``1e6x128x2048x20`` or ``1e6x128x2048x20-zipf``."""
        sizes, _, law = text.partition("-")
        try:
            values = [float(part) for part in sizes.split("x")]
            exact = all(value.is_integer() and value >= 1 for value in values)
        except ValueError:
            exact = False
        if not exact or len(values) != 4 or law not in ("", "zipf"):
            raise argparse.ArgumentTypeError(
                f"shape is {text!r}; it must be rows x dim x bags x length, such as 1e6x128x2048x20, with -zipf "
                f"behind it for rows that follow Zipf's law"
            )
        return cls(*(int(value) for value in values), zipf=bool(law))

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        power = len(str(self.rows)) - 1
        rows = f"1e{power}" if power > 3 and self.rows == 10**power else str(self.rows)
        return f"{rows}x{self.dim}x{self.bags}x{self.length}" + ("-zipf" if self.zipf else "")

    @property
    def sets(self) -> int:
        """How many sets of indices rotate."""
        return max(SETS, min(1024, CALLS // self.bags))


FORWARD = tuple(
    map(
        Shape.parse,
        (
            "1e6x64x2048x20",
            "1e6x128x2048x20",
            "1e6x128x2048x20-zipf",
            "1e7x128x2048x20",
            "1e6x256x512x50",
            "1e5x128x2048x20",
            "1e6x128x1x20",
        ),
    )
)
STEP = tuple(shape for shape in FORWARD if shape.bags > 1 and shape.rows <= 10**6)


def index_sets(shape: Shape, count: int, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Return ``count`` batches of indices (bags, length) int64.

    Zipf: the row of rank r (from 1) has a probability proportional to r^-1.05, over all V ranks, and ranks are
    given to rows at random, so that often used rows are not neighbours in memory.
    """
    generator = np.random.default_rng(seed)
    size = (shape.bags, shape.length)
    if not shape.zipf:
        return [generator.integers(0, shape.rows, size) for _ in range(count)]
    reached = np.cumsum(np.arange(1, shape.rows + 1, dtype=np.float64) ** -ZIPF)
    row_of_rank = generator.permutation(shape.rows)
    return [
        row_of_rank[np.searchsorted(reached, generator.random(size) * reached[-1], side="right")] for _ in range(count)
    ]
