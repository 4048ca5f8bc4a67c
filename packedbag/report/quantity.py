"""Numbers as people type them: ``10_000_000``, ``1e7`` or ``10M`` rows, ``24GB`` or ``22.5GiB`` of memory."""

from __future__ import annotations

import re
from fractions import Fraction

from packedbag.core.errors import ArgumentError

#: The number before a unit. Three digits of exponent are more than any machine has bytes, and no text makes us write
#: out a number of a million digits.
_NUMBER = r"(?P<number>\d[\d_]*(?:\.\d+)?|\.\d+)(?:e(?P<exponent>[+-]?\d{1,3}))?"
_QUANTITY = re.compile(rf"\s*{_NUMBER}\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE | re.ASCII)

#: Thousands, by the letters that people use for them: a billion is B or G.
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    SIZE_UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}

#: Rows of a table, at most: more than any machine has, and every product with it is far from 2^63 words a shard.
MOST = 10**15

COUNT_ALLOWED = "a whole number from 1 to 10^15, such as 10_000_000, 1e7 or 10M"
SIZE_ALLOWED = "a size such as 24GB (24 * 10^9 bytes), 24GiB (24 * 2^30) or 500MB"


def parse_count(text: str, name: str) -> int:
    """Return the number that ``text`` stands for.

    Args:
        text: digits, with ``_`` between them if wanted, an exponent, and k, M, B (or G) or T behind.
        name: of the argument, for the error.

    Raises:
        ArgumentError: it is no whole number in 1..10^15.

    >>> parse_count("10_000_000", "rows"), parse_count("1e7", "rows"), parse_count("1.5M", "rows")
    (10000000, 10000000, 1500000)
    """
    value = _value(text, COUNT_UNITS)
    if value is None or value.denominator != 1 or not 1 <= value <= MOST:
        raise ArgumentError(name, repr(text), COUNT_ALLOWED)
    return int(value)


def parse_size(text: str, name: str) -> int:
    """Return the bytes that ``text`` stands for, rounded down.

    Args:
        text: a number, and B, kB, MB, GB or TB (powers of 1000; the B may be left out), or KiB, MiB, GiB or TiB
            (powers of 1024), in any case.
        name: of the argument, for the error.

    Raises:
        ArgumentError: it is no size.

    >>> parse_size("24GB", "memory"), parse_size("1 KiB", "memory"), parse_size("500", "memory")
    (24000000000, 1024, 500)
    """
    value = _value(text, SIZE_UNITS)
    if value is None or value > MOST**2:
        raise ArgumentError(name, repr(text), SIZE_ALLOWED)
    return int(value)


def short_count(count: int) -> str:
    """Return a number of rows for reading, rounded down, so that what fits still fits; `parse_count` reads it.

    >>> short_count(999), short_count(599_903_287), short_count(1_079_820_113)
    ('999', '599M', '1.07B')
    """
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            digits = 10 ** max(3 - len(str(count // unit)), 0)
            return f"{count * digits // unit / digits:g}{letter}"
    return str(count)


def _value(text: str, units: dict[str, int]) -> Fraction | None:
    parsed = _QUANTITY.fullmatch(text)
    if parsed is None or parsed["unit"].lower() not in units:
        return None
    number = Fraction(parsed["number"].replace("_", ""))
    return number * Fraction(10) ** int(parsed["exponent"] or 0) * units[parsed["unit"].lower()]
