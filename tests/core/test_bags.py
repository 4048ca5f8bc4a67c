"""Indices and offsets: the forms that are bags, and the exact text where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.bags import bounded_offsets, check_indices, check_offsets, check_weights, dtype_name
from packedbag.core.errors import ArgumentError, DtypeError, OffsetsError, ShapeError

I64 = np.int64
LIBRARIES = [pytest.param(np.zeros, id="numpy"), pytest.param(torch.zeros, id="torch")]


def zeros(make: Any, shape: tuple[int, ...], dtype: str) -> Any:
    return make(shape, dtype=getattr(np if make is np.zeros else torch, dtype))


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_the_forms_of_torch_are_bags(make: Any, dtype: str) -> None:
    flat, offsets = zeros(make, (7,), dtype), zeros(make, (3,), dtype)
    assert check_indices(zeros(make, (4, 5), dtype), None, include_last_offset=False) == 4
    assert check_indices(flat, offsets, include_last_offset=False) == 3
    assert check_indices(flat, offsets, include_last_offset=True) == 2
    assert check_indices(flat[:0], offsets[:0], include_last_offset=False) == 0


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize(
    ("indices", "offsets", "last", "error", "text"),
    [
        (((3,), "float32"), ((1,), "int64"), False, DtypeError,
         "indices has dtype float32; it must be int32 or int64. Convert with .long() or .astype('int64')."),
        (((3,), "uint8"), ((1,), "int64"), False, DtypeError,
         "indices has dtype uint8; it must be int32 or int64. Convert with .long() or .astype('int64')."),
        (((2, 3), "int64"), ((2,), "int64"), False, ArgumentError,
         "offsets is given with 2-D indices; it must be None (each row of indices is a bag)."),
        (((3,), "int64"), None, False, ArgumentError,
         "offsets is None with 1-D indices; it must be a 1-D array of bag starts. Or pass (B, L) indices."),
        (((), "int64"), None, False, ShapeError,
         "indices has shape (); it must be (N,) with offsets, or (B, L)."),
        (((1, 2, 3), "int64"), None, False, ShapeError,
         "indices has shape (1, 2, 3); it must be (N,) with offsets, or (B, L)."),
        (((3,), "int64"), ((1,), "float64"), False, DtypeError,
         "offsets has dtype float64; it must be int32 or int64."),
        (((3,), "int64"), ((1, 1), "int64"), False, ShapeError,
         "offsets has shape (1, 1); it must be 1-D."),
        (((3,), "int64"), ((0,), "int64"), True, ShapeError,
         "offsets has shape (0); it must be at least one long. include_last_offset=True means that the end is listed."),
    ],
)  # fmt: skip
def test_other_forms_are_refused_by_name(
    make: Any, indices: Any, offsets: Any, last: bool, error: type[Exception], text: str
) -> None:
    arrays = [None if x is None else zeros(make, *x) for x in (indices, offsets)]
    with pytest.raises(error) as caught:
        check_indices(*arrays, include_last_offset=last)
    assert str(caught.value) == text


@pytest.mark.parametrize("make", LIBRARIES)
def test_weights_have_the_shape_of_indices_and_are_floating_point(make: Any) -> None:
    indices = zeros(make, (2, 3), "int64")
    for dtype in ("float32", "float16", "float64"):
        check_weights(zeros(make, (2, 3), dtype), indices)
    with pytest.raises(DtypeError) as caught:
        check_weights(indices, indices)
    assert str(caught.value) == "per_sample_weights has dtype int64; it must be floating point."
    with pytest.raises(ShapeError) as caught_shape:
        check_weights(zeros(make, (6,), "float32"), indices)
    assert str(caught_shape.value) == "per_sample_weights has shape (6); it must be the shape of indices, (2, 3)."


def test_weights_may_be_bfloat16() -> None:
    check_weights(torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int64))


def test_a_dtype_has_one_name_in_both_libraries() -> None:
    assert dtype_name(np.zeros(1, np.int32)) == dtype_name(torch.zeros(1, dtype=torch.int32)) == "int32"


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ([1, 2], "offsets[0] is 1; it must be 0. Bag b is indices[offsets[b]:offsets[b + 1]]."),
        ([-1, 2], "offsets[0] is -1; it must be 0. Bag b is indices[offsets[b]:offsets[b + 1]]."),
        ([0, 3, 2, 1], "offsets[2] is 2; it must be at least offsets[1] = 3. "
                       "Bag b is indices[offsets[b]:offsets[b + 1]]."),
        ([0, 3, -1], "offsets[2] is -1; it must be at least offsets[1] = 3. "
                     "Bag b is indices[offsets[b]:offsets[b + 1]]."),
        ([0, 6, 6], "offsets[1] is 6; it must be at most 5, the number of indices. "
                    "Bag b is indices[offsets[b]:offsets[b + 1]]."),
        ([0, 9, 2], "offsets[1] is 9; it must be at most 5, the number of indices. "
                    "Bag b is indices[offsets[b]:offsets[b + 1]]."),
    ],
)  # fmt: skip
def test_the_first_offset_that_is_wrong_is_named(offsets: list[int], text: str) -> None:
    for dtype in (np.int32, np.int64):
        with pytest.raises(OffsetsError) as caught:
            check_offsets(np.array(offsets, dtype), 5)
        assert str(caught.value) == text
        assert caught.value.position == int(text[8 : text.index("]")])


@pytest.mark.parametrize("offsets", [[], [0], [0, 0, 0], [0, 2, 2, 5], [0, 5, 5]])
def test_offsets_of_empty_bags_are_accepted(offsets: list[int]) -> None:
    check_offsets(np.array(offsets, I64), 5)


@given(values=st.lists(st.integers(-2, 7), max_size=6), size=st.integers(0, 6))
def test_offsets_are_refused_exactly_when_they_are_no_bags(values: list[int], size: int) -> None:
    good = not values or (values[0] == 0 and values == sorted(values) and values[-1] <= size)
    try:
        check_offsets(np.array(values, I64), size)
    except OffsetsError:
        assert not good
    else:
        assert good


def test_unsigned_wrap_around_does_not_hide_a_fall() -> None:
    # int32's extremes: a difference of neighbours would overflow and look like a rise.
    low = np.iinfo(np.int32).min
    with pytest.raises(OffsetsError, match="at least"):
        check_offsets(np.array([0, 2, low], np.int32), 5)


def test_bounded_offsets_end_with_the_number_of_indices() -> None:
    starts = np.array([0, 2, 2], np.int32)
    assert bounded_offsets(starts, 5, include_last_offset=False).tolist() == [0, 2, 2, 5]
    assert bounded_offsets(starts, 5, include_last_offset=True).tolist() == [0, 2, 2]
    assert bounded_offsets(starts[:0], 0, include_last_offset=False).tolist() == [0]
    assert bounded_offsets(starts, 5, include_last_offset=True).dtype == I64


def test_bounded_offsets_are_checked() -> None:
    with pytest.raises(OffsetsError):
        bounded_offsets(np.array([0, 6]), 5, include_last_offset=True)


def test_without_a_bag_no_index_is_in_one() -> None:
    assert bounded_offsets(np.zeros(0, I64), 5, include_last_offset=False).tolist() == [0]
