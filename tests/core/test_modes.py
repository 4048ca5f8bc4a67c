"""The table of modes: what may be combined, pinned row by row, and the text where it may not."""

from __future__ import annotations

from typing import Any

import pytest

from packedbag.core.errors import ArgumentError
from packedbag.core.modes import MODES, check_combination, get_mode

FLOATS = ("float32", "float16", "bfloat16")


def refused(mode: str, output: str = "float32", **factors: bool) -> str:
    named = {"weighted": False, "row_scale": False, "table_scale": False, **factors}
    with pytest.raises(ArgumentError) as caught:
        check_combination(get_mode(mode), output, **named)
    return str(caught.value)


@pytest.mark.parametrize(
    ("mode", "weighted", "outputs"),
    [
        ("sum", True, (*FLOATS, "int32")),
        ("mean", True, FLOATS),
        ("majority", False, (*FLOATS, "uint32")),
        ("max", False, (*FLOATS, "uint32")),
    ],
)
def test_a_mode_can_do_what_the_design_says(mode: str, weighted: bool, outputs: tuple[str, ...]) -> None:
    row = get_mode(mode)
    assert (row.name, row.weighted, row.outputs) == (mode, weighted, outputs)


def test_there_are_four_modes() -> None:
    assert list(MODES) == ["sum", "mean", "majority", "max"]


@pytest.mark.parametrize(("name", "text"), [("median", "'median'"), (None, "None"), (["sum"], "['sum']"), (0, "0")])
def test_an_unknown_mode_is_refused(name: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        get_mode(name)
    assert str(caught.value) == f"mode is {text}; it must be one of 'sum', 'mean', 'majority', 'max'."


@pytest.mark.parametrize("mode", MODES)
def test_every_floating_output_takes_a_table_scale(mode: str) -> None:
    for output in FLOATS:
        check_combination(get_mode(mode), output, weighted=False, row_scale=False, table_scale=True)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_sum_and_mean_take_weights_and_a_row_scale(mode: str) -> None:
    check_combination(get_mode(mode), "bfloat16", weighted=True, row_scale=True, table_scale=False)


@pytest.mark.parametrize(
    ("mode", "output", "allowed"),
    [
        ("mean", "int32", "float32, float16, bfloat16"),
        ("sum", "uint32", "float32, float16, bfloat16, int32"),
        ("max", "int32", "float32, float16, bfloat16, uint32"),
        ("majority", "float64", "float32, float16, bfloat16, uint32"),
    ],
)
def test_an_output_that_the_mode_has_not_is_refused(mode: str, output: str, allowed: str) -> None:
    assert refused(mode, output) == f"output_dtype is {output}; it must be one of {allowed} for mode='{mode}'."


@pytest.mark.parametrize("mode", ["majority", "max"])
def test_weights_and_row_scales_are_refused_where_they_have_no_meaning(mode: str) -> None:
    assert refused(mode, weighted=True) == (
        f"per_sample_weights is given with mode='{mode}'; it must be None, except for mode='sum' and 'mean'."
    )
    assert refused(mode, row_scale=True) == (
        f"scale is one value a row with mode='{mode}'; it must be a single value, except for mode='sum' and 'mean'."
    )


@pytest.mark.parametrize(("mode", "output"), [("sum", "int32"), ("majority", "uint32"), ("max", "uint32")])
def test_integers_and_packed_bits_take_no_scale(mode: str, output: str) -> None:
    text = f"is given with output_dtype={output}; it must be None for output_dtype={output}."
    assert refused(mode, output, table_scale=True) == f"scale {text}"


def test_integers_take_neither_weights_nor_a_row_scale() -> None:
    text = "is given with output_dtype=int32; it must be None for output_dtype=int32."
    assert refused("sum", "int32", weighted=True) == f"per_sample_weights {text}"
    assert refused("sum", "int32", row_scale=True) == f"scale {text}"
