"""Rows of packed tables as bytes, as search libraries take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.layout import tail_mask
from packedbag.io.watch import passed
from packedbag.table import PackedTable

#: Bytes that are handed over at once.
PIECE = 1 << 24


def byte_rows(table: PackedTable) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the first row and the bytes (n, ceil(D / 8)) uint8 of each piece of a table.

    Column j is bit j % 8, lowest first, of byte j // 8; bits beyond D are 0, so that distances of rows are those of
    their D columns.
    """
    width, mask = -(-table.embedding_dim // 8), np.uint32(tail_mask(table.embedding_dim))
    step = max(1, PIECE // (4 * table.words.shape[1]))
    for start in range(0, len(table), step):
        words = np.array(table.words[start : start + step], "<u4")
        words[:, -1] &= mask
        yield start, np.ascontiguousarray(words.view(np.uint8)[:, :width])
        passed(words.nbytes)
