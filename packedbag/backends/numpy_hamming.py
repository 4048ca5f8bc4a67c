"""Hamming distances in NumPy's own population count, where no kernel is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.layout import tail_mask

#: Words of the largest temporary.
WORDS_AT_ONCE = 1 << 20


def hamming(words: Any, queries: Any, *, embedding_dim: int) -> npt.NDArray[np.int32]:
    """See `packedbag.backends.protocol.Backend.hamming`."""
    table, wanted = words.view(np.uint32), queries.view(np.uint32)
    mask = np.full(table.shape[1], 0xFFFFFFFF, np.uint32)
    mask[-1] = tail_mask(embedding_dim)
    out = np.empty((len(wanted), len(table)), np.int32)
    rows = max(1, WORDS_AT_ONCE // table.shape[1])
    for start in range(0, len(table), rows):
        part = table[start : start + rows]
        for number, query in enumerate(wanted):
            differ = (part ^ query) & mask
            out[number, start : start + rows] = np.bitwise_count(differ).sum(axis=1, dtype=np.int32)
    return out
