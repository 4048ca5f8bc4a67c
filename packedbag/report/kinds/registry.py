"""The kinds that are compared, in the order in which they are shown."""

from __future__ import annotations

from packedbag.core.errors import ArgumentError
from packedbag.report.kinds.char import Char
from packedbag.report.kinds.floats import Floats
from packedbag.report.kinds.int8 import Int8
from packedbag.report.kinds.kind import Kind
from packedbag.report.kinds.packed import Packed

KEYS = ("fp32", "fp16", "int8", "char", "packed")


def make_kind(
    key: str, *, bits: int = 8, optimizer: str = "adagrad", bits_per_value: int = 1, code: str = "thermometer"
) -> Kind:
    """Return a kind by its key.

    Args:
        key: one of `KEYS`.
        bits: k, of packed tables in training.
        optimizer: of float tables, a key of `packedbag.report.kinds.floats.OPTIMIZERS`.
        bits_per_value, code: how bits of packed tables make values; see `Packed`.

    Raises:
        ArgumentError: an argument is not one of those.

    >>> make_kind("packed", bits=4).title
    'packed, k = 4'
    """
    if key in ("fp32", "fp16"):
        return Floats(int(key.removeprefix("fp")), optimizer)
    if key == "packed":
        return Packed(bits, bits_per_value=bits_per_value, code=code)
    if key in KEYS:
        return Int8() if key == "int8" else Char()
    raise ArgumentError("kind", repr(key), f"one of {', '.join(KEYS)}")
