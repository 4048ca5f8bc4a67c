"""How the bits of a value are read as one number: as a thermometer, or as a binary number.

The p neighbouring bits of a value, each +1 or -1, are reduced to their mean ("thermometer"), or to their mean with the
weights 1, 2, 4, ... ("binary"): p + 1 values, or 2^p, evenly spaced from -1 to 1. Both are sums of columns, so bags are
reduced column by column first and the bits of a value put together at the end.
"""

from __future__ import annotations

from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.core.layout import BITS_PER_WORD

CODES = ("thermometer", "binary")

#: Bits of a counter at most: it is a byte while it is moved.
COUNTER_BITS = 8
#: How many bits a value may have that is a binary number: as many as a counter can drive.
BINARY_GROUPS = (2, 4, 8)

#: Random numbers are drawn for so many counters of a row at once: no two parts of a table share them.
COUNTERS_AT_ONCE = 8


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


def column_multiple(bits_per_value: int, code: str) -> int:
    """Return what the first column of each part of a table is a multiple of: whole words, and 8 counters.

    >>> [column_multiple(bits, "binary") for bits in (2, 4, 8)], column_multiple(8, "thermometer")
    ([32, 32, 64], 32)
    """
    return max(BITS_PER_WORD, COUNTERS_AT_ONCE * columns_per_counter(bits_per_value, code))


def check_counter_bits(bits: int, bits_per_value: int, code: str) -> int:
    """Return the bits of a counter that has ``bits`` a column, or raise `ArgumentError` where these are too many."""
    columns = columns_per_counter(bits_per_value, code)
    if columns * bits > COUNTER_BITS:
        allowed = f"at most {COUNTER_BITS // columns} for a table of {columns} bits a value"
        advice = "With code='binary' a counter drives all bits of a value; with code='thermometer' each has its own."
        raise ArgumentError("bits", bits, allowed, advice)
    return columns * bits


def values_of(columns: Any, bits_per_value: int, code: str) -> Any:
    """Return the values that sums or means of columns make, (B, D) -> (B, D / bits_per_value).

    Every backend and format does it in this order, so that all have the same floats: the lowest bit first, or the
    highest of a binary number, of which doubling is exact.

    Args:
        columns: NumPy array or torch tensor, floating point.
        bits_per_value: p; column p * i + j is bit j of value i, the lowest first.
        code: one of `CODES`.
    """
    bits = bits_per_value
    if bits == 1:
        return columns
    parts = columns.reshape(columns.shape[0], columns.shape[1] // bits, bits)
    # Backward of one unbind makes one tensor of D columns; of so many slices, one for each.
    each = parts.unbind(2) if hasattr(parts, "unbind") else [parts[:, :, bit] for bit in range(bits)]
    binary = code == "binary"
    total, *others = reversed(each) if binary else each
    for column in others:
        total = (total + total if binary else total) + column
    most: Any = 2**bits - 1 if binary else bits
    # On CUDA torch would multiply by the reciprocal of a Python number.
    return total / (total.new_full((), most) if hasattr(total, "new_full") else most)
