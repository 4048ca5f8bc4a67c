"""The table of reductions: what each mode may be combined with.

A mode is one row here and one function in `packedbag.backends.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

from packedbag.core.errors import ArgumentError

FLOATING = ("float32", "float16", "bfloat16")
PACKED = "uint32"


@dataclass(frozen=True)
class Mode:
    """A reduction of a bag of rows of +-1.

    Attributes:
        name: the value of ``mode=``.
        weighted: whether ``per_sample_weights`` and a "row" scale are allowed.
        outputs: the names of the output dtypes it can produce; "uint32" is packed bits.
    """

    name: str
    weighted: bool
    outputs: tuple[str, ...]


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("sum", True, (*FLOATING, "int32")),
        Mode("mean", True, FLOATING),
        Mode("majority", False, (*FLOATING, PACKED)),
        Mode("max", False, (*FLOATING, PACKED)),
    )
}


def get_mode(name: str) -> Mode:
    """Return the mode called ``name``.

    >>> get_mode("majority").outputs
    ('float32', 'float16', 'bfloat16', 'uint32')
    """
    try:
        return MODES[name]
    except (KeyError, TypeError):
        raise ArgumentError("mode", repr(name), f"one of {', '.join(map(repr, MODES))}") from None


def check_combination(mode: Mode, output: str, *, weighted: bool, row_scale: bool, table_scale: bool) -> None:
    """Raise unless ``mode`` can produce ``output`` with these factors."""
    if output not in mode.outputs:
        raise ArgumentError("output_dtype", output, f"one of {', '.join(mode.outputs)} for mode={mode.name!r}")
    if weighted and not mode.weighted:
        raise ArgumentError(
            "per_sample_weights", f"given with mode={mode.name!r}", "None, except for mode='sum' and 'mean'"
        )
    if row_scale and not mode.weighted:
        raise ArgumentError(
            "scale", f"one value a row with mode={mode.name!r}", "a single value, except for mode='sum' and 'mean'"
        )
    if output not in FLOATING and (weighted or row_scale or table_scale):
        what = "per_sample_weights" if weighted else "scale"
        raise ArgumentError(what, f"given with output_dtype={output}", f"None for output_dtype={output}")
