"""Philox4x32-10, the counter-based random numbers behind stochastic rounding. NumPy.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
A number is a function of (seed, table, step, row, column) alone: no thread, backend or shard changes it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW32 = 0xFFFFFFFF

U32 = npt.NDArray[np.uint32]


def philox4x32(counter: U32, key: tuple[int, int]) -> U32:
    """Return the four 32-bit outputs of each counter, (..., 4) uint32 -> (..., 4) uint32."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    low, high = key
    for _ in range(ROUNDS):
        a, b = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(low),
            b & np.uint64(LOW32),
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(high),
            a & np.uint64(LOW32),
        ]
        low, high = (low + WEYL[0]) & LOW32, (high + WEYL[1]) & LOW32
    return np.stack(c, axis=-1).astype(np.uint32)


def halfwords(
    rows: npt.NDArray[np.int64], embedding_dim: int, *, seed: int, step: int, table: int, first_column: int = 0
) -> U32:
    """Return 16 random bits for every (row, column), (R,) -> (R, D) uint32 in 0..65535.

    Key: the 64-bit seed. Counter: (row low 32, row high 32, step, table << 16 | column // 8); column j takes
    halfword j % 8 of the 128 output bits, low half first. ``first_column``, a multiple of 8, is the number of the first
    of the D.
    """
    blocks = -(-embedding_dim // 8)
    counter = np.empty((len(rows), blocks, 4), np.uint32)
    wide = rows.astype(np.uint64)
    counter[..., 0] = (wide & np.uint64(LOW32)).astype(np.uint32)[:, None]
    counter[..., 1] = (wide >> np.uint64(32)).astype(np.uint32)[:, None]
    counter[..., 2] = step & LOW32
    counter[..., 3] = (table << 16) + first_column // 8 + np.arange(blocks, dtype=np.uint32)
    out = philox4x32(counter, (seed & LOW32, (seed >> 32) & LOW32))
    halves = np.stack([out & 0xFFFF, out >> 16], axis=-1).reshape(len(rows), blocks * 8)
    return halves[:, :embedding_dim]
