"""Rows whose ids are numbers: what the model eats, and how they are chosen and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass
class Column:
    """The table rows of one field: ``indices`` (N,) int64, and ``offsets`` (n + 1,) int64, the end included.

    ``weights`` is (N,) float32 or None.
    """

    indices: I64
    offsets: I64
    weights: F32 | None = None

    def take(self, rows: I64) -> Column:
        """Return the bags of ``rows``, in that order."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        positions = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Column(self.indices[positions], offsets, None if self.weights is None else self.weights[positions])


@dataclass
class Rows:
    """Labels (n,) float32 of 0 and 1, and one `Column` for each field."""

    labels: F32
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: I64) -> Rows:
        """Return the rows at ``rows`` (m,), in that order."""
        return Rows(self.labels[rows], tuple(column.take(rows) for column in self.columns))


def join(blocks: Sequence[Rows]) -> Rows:
    """Return the rows of all ``blocks``, at least one, one after another."""
    if len(blocks) == 1:
        return blocks[0]
    labels = np.concatenate([block.labels for block in blocks])
    return Rows(labels, tuple(_join_columns(columns) for columns in zip(*(b.columns for b in blocks), strict=True)))


def _join_columns(columns: Sequence[Column]) -> Column:
    ends = np.cumsum([0, *(len(column.indices) for column in columns)])
    starts = [column.offsets[:-1] + end for column, end in zip(columns, ends[:-1], strict=True)]
    weights = [column.weights for column in columns if column.weights is not None]
    return Column(
        np.concatenate([column.indices for column in columns]),
        np.concatenate([*starts, ends[-1:]]),
        np.concatenate(weights) if weights else None,
    )
