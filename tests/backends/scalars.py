"""Float32 arithmetic one operation at a time, as DESIGN 2.1 writes it down; owes nothing to the oracle."""

from __future__ import annotations

import numpy as np

F = np.float32


def scalar_sum_of_squares(values: list[np.float32]) -> np.float32:
    """Add squares as DESIGN 2.1 says, one float32 operation at a time."""
    lanes = [F(0)] * 32
    for column, value in enumerate(values):
        lanes[column % 32] = lanes[column % 32] + value * value
    for half in (16, 8, 4, 2, 1):
        for c in range(half):
            lanes[c] = lanes[c] + lanes[c + half]
    return lanes[0]
