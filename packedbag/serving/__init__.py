"""Serving packed tables without torch: the rows nearest to a query."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError
from packedbag.table import PackedTable

__all__ = ["hamming_topk"]


def hamming_topk(
    table: PackedTable, query_words: npt.NDArray[Any], k: int, *, backend: str = "auto"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the ``k`` rows of ``table`` that are nearest to each query: `packedbag.PackedTable.hamming_topk`."""
    if not isinstance(table, PackedTable):
        raise ArgumentError("table", f"a {type(table).__name__}", "a PackedTable", "Call to_table() on a module.")
    return table.hamming_topk(query_words, k, backend=backend)
