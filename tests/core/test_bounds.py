"""The policies for indices outside the table, and where padding may lie."""

from __future__ import annotations

from typing import Any

import pytest

from packedbag.core.bounds import BOUNDS, check_bounds, check_padding_idx
from packedbag.core.errors import ArgumentError


def test_the_policies_are_four() -> None:
    assert [check_bounds(name) for name in BOUNDS] == ["raise", "clamp", "skip", "unchecked"]


@pytest.mark.parametrize(("name", "text"), [("wrap", "'wrap'"), (None, "None"), ("", "''")])
def test_another_policy_is_refused(name: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_bounds(name)
    assert str(caught.value) == f"bounds is {text}; it must be one of 'raise', 'clamp', 'skip', 'unchecked'."


@pytest.mark.parametrize(("given", "row"), [(None, None), (0, 0), (9, 9), (-1, 9), (-10, 0)])
def test_padding_counts_from_either_end(given: int | None, row: int | None) -> None:
    assert check_padding_idx(given, 10) == row


@pytest.mark.parametrize("given", [10, -11])
def test_padding_that_names_no_row_is_refused(given: int) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_padding_idx(given, 10)
    assert str(caught.value) == f"padding_idx is {given}; it must be in -10..9 (num_embeddings=10)."


@pytest.mark.parametrize("given", [1.5, True, "1"])
def test_padding_that_is_no_integer_is_refused(given: Any) -> None:
    with pytest.raises(ArgumentError, match=f"padding_idx is {given!r}; it must be an integer or None"):
        check_padding_idx(given, 10)


def test_a_table_without_rows_has_no_padding() -> None:
    assert check_padding_idx(None, 0) is None
    with pytest.raises(ArgumentError) as caught:
        check_padding_idx(0, 0)
    assert str(caught.value) == "padding_idx is 0; it must be in 0..-1 (num_embeddings=0)."
