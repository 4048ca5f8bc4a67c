"""Values of several bits: what their counters decay toward, so that a value without evidence is close to 0.

The bits of one value are the answers to "is the quantity above this bit's threshold?", a thermometer code. All of
them get the same gradient; decay draws their counters toward centers that lie ``spacing`` apart and add up to 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError
from packedbag.core.modes import FLOATING

#: How many neighbouring bits may make a value; a word of 32 holds whole values.
GROUPS = (1, 2, 4, 8, 16, 32)

#: Spacings are multiples of this, so that centers, and their distances to counters, are exact in float32.
GRAIN = 1 / 32


def check_bits_per_value(bits_per_value: int, embedding_dim: int, mode: str, output: str) -> int:
    """Return ``bits_per_value`` as an int, or raise `ArgumentError`.

    Args:
        bits_per_value: one of `GROUPS`.
        embedding_dim: D, a multiple of it.
        mode: how bags are reduced: "sum" or "mean" where a value has several bits.
        output: the name of the output's dtype, floating point where a value has several bits.
    """
    if bits_per_value not in GROUPS:
        raise ArgumentError("bits_per_value", repr(bits_per_value), "1, 2, 4, 8, 16 or 32")
    bits = int(bits_per_value)
    if embedding_dim % bits:
        raise ArgumentError("embedding_dim", embedding_dim, f"a multiple of bits_per_value={bits}")
    if bits > 1 and mode not in ("sum", "mean"):
        raise ArgumentError("mode", repr(mode), f"'sum' or 'mean' with bits_per_value={bits}")
    if bits > 1 and output not in FLOATING:
        raise ArgumentError("output_dtype", output, f"floating point with bits_per_value={bits}")
    return bits


def centers(embedding_dim: int, spacing: float, group: int) -> npt.NDArray[np.float32]:
    """Return what the counter of each column decays toward, (D,) float32, less a half.

    Args:
        embedding_dim: D.
        spacing: of neighbouring columns of a value, in counts: a multiple of `GRAIN` in 0..255.
        group: columns that make a value, one of `GROUPS`.

    >>> centers(5, 2.0, 4)
    array([-3., -1.,  1.,  3., -3.], dtype=float32)
    """
    column = np.arange(embedding_dim, dtype=np.float32) % np.float32(group)
    found: npt.NDArray[np.float32] = np.float32(spacing) * (column - np.float32((group - 1) / 2))
    return found


def whole_grains(spacing: float) -> float:
    """Return the multiple of `GRAIN` in 0..255 that is nearest to ``spacing``, in counts.

    >>> whole_grains(17.51)
    17.5
    """
    return min(round(spacing / GRAIN) * GRAIN, 255.0)
