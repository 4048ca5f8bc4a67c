"""How often a row was touched, in 8 bits: exact up to 128, then by eighths of a power of two, counted by chance.

Source: Morris, "Counting Large Numbers of Events in Small Registers", CACM 21 (1978): a counter of what is left of a
number when only its magnitude is kept counts on with a probability that is the inverse of its gap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from packedbag.core.philox import LOW32

U32 = npt.NDArray[np.uint32]

MASK = 0xFF
#: Up to here a code is the number itself.
EXACT = 128
LARGEST = 0xFF
#: Odd constants that bring the parts of a number apart, and those of MurmurHash3's finalizer (public domain).
PARTS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
FINAL = (0x85EBCA6B, 0xC2B2AE35)


def touches_of(code: U32) -> npt.NDArray[np.int64]:
    """Return the number of touches that codes 0..255 stand for.

    >>> touches_of(np.array([0, 128, 129, 136, 255], np.uint32)).tolist()
    [0, 128, 144, 256, 7864320]
    """
    octave, part = np.divmod(np.maximum(code, EXACT).astype(np.int64) - EXACT, 8)
    return np.where(code < EXACT, code, (8 + part) << (octave + 4))


def touched(state: npt.NDArray[np.int32], random: U32) -> U32:
    """Return the codes after one more touch of rows whose state words, or codes, were ``state``."""
    code = state.view(np.uint32) & np.uint32(MASK)
    octave = (np.maximum(code, EXACT) - EXACT) // 8
    gap = np.left_shift(np.uint32(16), octave.astype(np.uint32))
    counts = (code < EXACT) | (random & (gap - np.uint32(1)) == 0)
    after: U32 = np.minimum(code + counts, LARGEST).astype(np.uint32)
    return after


def mixed(rows: npt.NDArray[np.int64], *, seed: int, step: int, table: int) -> U32:
    """Return 32 random bits for every row, (R,) -> (R,) uint32: a hash, where Philox would cost as much as the row."""
    wide = rows.astype(np.uint64)
    low, high = wide & np.uint64(LOW32), wide >> np.uint64(32)
    fixed = (seed & LOW32) ^ (step * PARTS[2] & LOW32) ^ (table * PARTS[3] & LOW32)
    h = low * np.uint64(PARTS[0]) ^ high * np.uint64(PARTS[1]) ^ np.uint64(fixed)
    h &= np.uint64(LOW32)
    h ^= h >> np.uint64(16)
    h = h * np.uint64(FINAL[0]) & np.uint64(LOW32)
    h ^= h >> np.uint64(13)
    h = h * np.uint64(FINAL[1]) & np.uint64(LOW32)
    h ^= h >> np.uint64(16)
    random: U32 = h.astype(np.uint32)
    return random
