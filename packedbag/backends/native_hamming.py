"""Hamming distances in the compiled kernels: of all rows, and the nearest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.backends import native_library as lib
from packedbag.backends.native_library import address

OUT_OF_MEMORY = -2
#: Bytes of the candidates that one pass over the table keeps; more queries than these have room for take more passes.
CANDIDATE_BYTES = 256 << 20
#: A pass over a table takes at most this many queries, whose words share a core's second cache with a block of rows.
QUERIES_AT_ONCE = 4096


class NativeHamming:
    """Gives the native backend its `hamming` and `nearest`."""

    _row: int
    _library: Any

    def hamming(self, words: Any, queries: Any, *, embedding_dim: int) -> npt.NDArray[np.int32]:
        """See `packedbag.backends.protocol.Backend.hamming`."""
        out = np.empty((len(queries), len(words)), np.int32)
        self._library.pb_hamming(
            lib.HAMMING(
                self._row, address(words), len(words), embedding_dim, address(queries), len(queries), address(out)
            )
        )
        return out

    def nearest(
        self, words: Any, queries: Any, k: int, *, embedding_dim: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the ``k`` rows that differ least from each query, in one pass over the table.

        Args:
            words: (V, W) contiguous; queries: (Q, W) contiguous; tail bits of both count for nothing.
            k: 0 to V.
            embedding_dim: D.

        Returns:
            Distances (Q, k) int32, ascending, and rows (Q, k) int64; of equal distances the lower row comes first.

        Raises:
            MemoryError: there is no memory for the candidates.
        """
        distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
        candidates = 8 * max(1, k) * int(self._library.pb_threads())
        step = min(QUERIES_AT_ONCE, max(1, CANDIDATE_BYTES // candidates))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            count = len(queries[part])
            done = self._library.pb_nearest(
                lib.NEAREST(
                    *(self._row, address(words), len(words), embedding_dim, address(queries[part]), count, k),
                    *(address(distances[part]), address(rows[part])),
                )
            )
            if done == OUT_OF_MEMORY:
                raise MemoryError(f"no memory for {count} x {k} candidates; ask for fewer at once")
        return distances, rows
