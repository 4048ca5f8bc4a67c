"""What the bits of a table look like: how many are set in each column, which columns say nothing, which rows repeat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.layout import tail_mask
from packedbag.io.watch import passed
from packedbag.table import PackedTable

#: Words that are looked at together.
PIECE_WORDS = 1 << 22
#: Rows whose hashes are kept, 8 bytes each; of a larger table a part of all hashes is looked at.
MOST_HASHES = 1 << 26
#: Multipliers of MurmurHash3's finalizer (Austin Appleby, public domain).
FIRST, SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@dataclass(frozen=True)
class Statistics:
    """What `measure` found.

    Attributes:
        ones: rows with +1, by column, (D,) int64.
        num_embeddings: V.
        duplicates: rows that equal an earlier one; of tables of more than `MOST_HASHES` rows an estimate.
        is_estimated: whether it is one.
    """

    ones: npt.NDArray[np.int64] = field(repr=False)
    num_embeddings: int
    duplicates: int
    is_estimated: bool

    @property
    def density(self) -> float:
        """The part of all bits that is +1; NaN of a table without rows."""
        return float(self.ones.mean() / self.num_embeddings) if self.num_embeddings else float("nan")

    def dead_columns(self) -> tuple[list[int], list[int]]:
        """Return the columns that are -1 in every row, and those that are +1."""
        if not self.num_embeddings:
            return [], []
        return np.flatnonzero(self.ones == 0).tolist(), np.flatnonzero(self.ones == self.num_embeddings).tolist()


def measure(table: PackedTable) -> Statistics:
    """Read a table once, piece by piece: columns take the time of a bag of all rows, duplicates 8 bytes a row.

    >>> found = measure(PackedTable(np.array([[0b01], [0b11], [0b01]], np.uint32), 3))
    >>> found.ones.tolist(), found.dead_columns(), found.duplicates
    ([3, 1, 0], ([2], [0]), 1)
    """
    dim, rows = table.embedding_dim, len(table)
    plain = PackedTable(table.words, dim)
    ones = np.zeros(dim, np.int64)
    part = 1  # one of so many hashes is kept
    while rows // part > MOST_HASHES:
        part *= 2
    kept = []
    step = max(1, PIECE_WORDS // table.words.shape[1])
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        bag = np.arange(start, stop, dtype=np.int64)[None]
        ones += (plain.bag(bag, mode="sum", output_dtype=np.int32)[0].astype(np.int64) + (stop - start)) // 2
        hashes = _hashes(table.words[start:stop], dim)
        kept.append(hashes if part == 1 else hashes[hashes % np.uint64(part) == 0])
        passed((stop - start) * 4 * table.words.shape[1])
    hashes = np.concatenate(kept) if kept else np.empty(0, np.uint64)
    hashes.sort()
    repeated = int((hashes[1:] == hashes[:-1]).sum())
    return Statistics(ones, rows, repeated * part, part > 1)


def _hashes(words: npt.NDArray[Any], dim: int) -> npt.NDArray[np.uint64]:
    """Return 64 bits of hash for each row, in which two of 10^8 different rows agree with a chance of 1 in 3000."""
    mixed = np.zeros(len(words), np.uint64)
    last, mask = words.shape[1] - 1, np.uint32(tail_mask(dim))
    for column in range(words.shape[1]):
        word = words[:, column]
        mixed ^= (word & mask if column == last else word).astype(np.uint64)
        mixed ^= mixed >> np.uint64(33)
        mixed *= FIRST
        mixed ^= mixed >> np.uint64(29)
        mixed *= SECOND
        mixed += np.uint64(column + 1)
    mixed ^= mixed >> np.uint64(32)
    return mixed
