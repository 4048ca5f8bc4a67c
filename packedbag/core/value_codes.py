"""How the bits of a value are read as one number: as a thermometer, or as a binary number.

The p neighbouring bits of a value, each +1 or -1, are reduced to their mean ("thermometer"), or to their mean with the
weights 1, 2, 4, ... ("binary"): p + 1 values, or 2^p, evenly spaced from -1 to 1. Both are sums of columns, so bags are
reduced column by column first and the bits of a value put together at the end.
"""

from __future__ import annotations

from typing import Any

from packedbag.core.errors import ArgumentError

CODES = ("thermometer", "binary")

#: How many bits a value may have that is a binary number: as many as a counter of 8 bits can drive.
BINARY_GROUPS = (2, 4, 8)


def check_code(code: str, bits_per_value: int) -> str:
    """Return ``code``, or raise `ArgumentError`.

    Args:
        code: one of `CODES`; "binary" where a value has 2, 4 or 8 bits.
        bits_per_value: p.
    """
    if code not in CODES:
        raise ArgumentError("code", repr(code), "'thermometer' or 'binary'")
    if code == "binary" and bits_per_value not in BINARY_GROUPS:
        raise ArgumentError("bits_per_value", bits_per_value, "2, 4 or 8 with code='binary'")
    return code


def columns_per_counter(bits_per_value: int, code: str) -> int:
    """Return how many columns one counter of an optimizer drives: all of a binary number, else one."""
    return bits_per_value if code == "binary" else 1


def values_of(columns: Any, bits_per_value: int, code: str) -> Any:
    """Return the values that sums or means of columns make, (B, D) -> (B, D / bits_per_value).

    Every backend and format does it in this order, so that all have the same floats. Of a binary number, doubling is
    exact; the sum is rounded once for each of the other bits, and by the division.

    Args:
        columns: NumPy array or torch tensor, floating point.
        bits_per_value: p; column p * i + j is bit j of value i, the lowest first.
        code: one of `CODES`.
    """
    bits = bits_per_value
    if bits == 1:
        return columns
    if code == "thermometer":
        return columns.reshape(columns.shape[0], columns.shape[1] // bits, bits).mean(2)
    total = columns[:, bits - 1 :: bits]
    for bit in range(bits - 2, -1, -1):
        total = total + total + columns[:, bit::bits]
    return total / (2**bits - 1)
