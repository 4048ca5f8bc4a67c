"""What a table's updates add up to: eight 64-bit integers that every backend counts in, exactly and in any order.

Integers, so that threads, devices and shards may add in any order and still agree to the last bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Fields: flips of weights; rows updated; of the last step: rows with a statistic, and the sum of these as integers;
#: steps that were folded into the typical statistic; the typical statistic, the bits of a float32.
FLIPS, ROWS, STEP_ROWS, STEP_BITS, FOLDS, TYPICAL = range(6)
FIELDS = 8

#: Steps over which the typical statistic is averaged.
MEMORY = 100


def new() -> npt.NDArray[np.int64]:
    """Return the totals of a table that was never updated."""
    return np.zeros(FIELDS, np.int64)


def typical(totals: npt.NDArray[np.int64]) -> np.float32:
    """Return the typical statistic of the rows that a step updates; 0 before the first fold."""
    found: np.float32 = np.uint32(totals[TYPICAL]).view(np.float32)
    return found


def fold(totals: npt.NDArray[np.int64]) -> None:
    """Take the last step's statistics into the typical one, in place: called once before each step.

    The mean is of the statistics' bits as integers. A float's bits are close to a linear function of its logarithm
    (Mitchell 1962), so this is nearly the geometric mean, which a few hot rows do not carry away; and a sum of integers
    is exact in any order.
    """
    rows = int(totals[STEP_ROWS])
    if rows == 0:
        return
    mean = np.uint32(int(totals[STEP_BITS]) // rows).view(np.float32)
    folds = int(totals[FOLDS]) + 1
    old = typical(totals)
    now = np.float32(old + np.float32(mean - old) / np.float32(min(folds, MEMORY)))
    totals[FOLDS] = folds
    totals[TYPICAL] = int(now.view(np.uint32))
    totals[STEP_ROWS] = totals[STEP_BITS] = 0
