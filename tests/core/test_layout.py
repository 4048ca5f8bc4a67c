"""How weights lie in words: checked bit by bit, with Python's integers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import (
    MAX_EMBEDDING_DIM,
    check_embedding_dim,
    check_words,
    pack_array,
    tail_mask,
    unpack_array,
    view_words,
    words_per_row,
)
from tests.strategies import DIMS, dims, make_words, seeds


@pytest.mark.parametrize(("dim", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3), (257, 9)])
def test_a_row_takes_one_word_for_every_32_columns_begun(dim: int, words: int) -> None:
    assert words_per_row(dim) == words


@pytest.mark.parametrize("dim", DIMS)
def test_the_tail_mask_has_a_bit_for_every_column_of_the_last_word(dim: int) -> None:
    columns = dim - 32 * (words_per_row(dim) - 1)
    assert tail_mask(dim) == sum(1 << c for c in range(columns))


@given(seed=seeds, dim=dims, rows=st.integers(0, 4), kind=st.sampled_from(["bool", "float32", "float16", "float64"]))
def test_column_j_is_bit_j_mod_32_of_word_j_div_32(seed: int, dim: int, rows: int, kind: str) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, dim))
    x = x > 0 if kind == "bool" else x.astype(kind)
    words = pack_array(x)
    assert words.shape == (rows, words_per_row(dim))
    assert words.dtype == np.uint32
    for row, values in zip(words.tolist(), x.tolist(), strict=True):
        expected = [0] * words_per_row(dim)
        for j, value in enumerate(values):
            expected[j // 32] |= (value is True or (value is not False and value >= 0)) << (j % 32)
        assert row == expected


@given(seed=seeds, dim=dims, signed=st.booleans())
def test_unpacking_reads_every_bit_and_no_tail(seed: int, dim: int, signed: bool) -> None:
    words = make_words(np.random.default_rng(seed), 3, dim)
    bits = unpack_array(words.view(np.int32) if signed else words, dim)
    assert bits.dtype == np.bool_
    assert bits.tolist() == [[bool(row[j // 32] >> (j % 32) & 1) for j in range(dim)] for row in words.tolist()]


@given(seed=seeds, dim=dims)
def test_packing_undoes_unpacking(seed: int, dim: int) -> None:
    bits = np.random.default_rng(seed).random((2, 3, dim)) < 0.5
    np.testing.assert_array_equal(unpack_array(pack_array(bits), dim), bits)


def test_tail_bits_are_zero() -> None:
    for dim in DIMS:
        assert pack_array(np.ones((1, dim), bool))[0, -1] == tail_mask(dim)


def test_zero_and_minus_zero_are_plus_one() -> None:
    values = np.array([0.0, -0.0, -1e-45, 1e-45, -np.inf, np.inf], np.float32)
    assert unpack_array(pack_array(values), 6).tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed"])
def test_any_memory_order_packs_and_unpacks_the_same(layout: str) -> None:
    rng = np.random.default_rng(0)
    x = {
        "transposed": rng.standard_normal((40, 5)).T,
        "strided": rng.standard_normal((5, 80))[:, ::2],
        "reversed": rng.standard_normal((5, 40))[::-1, ::-1],
    }[layout]
    words = pack_array(x)
    np.testing.assert_array_equal(words, pack_array(np.ascontiguousarray(x)))
    np.testing.assert_array_equal(unpack_array(np.asfortranarray(words), 40), x >= 0)


def test_words_are_little_endian_in_memory_on_a_little_endian_machine() -> None:
    if sys.byteorder != "little":
        pytest.skip("the machine is big-endian")
    bits = np.zeros((1, 33), bool)
    bits[0, [0, 9, 32]] = True
    assert pack_array(bits).tobytes() == bytes([1, 2, 0, 0, 1, 0, 0, 0])


def test_a_nan_is_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        pack_array(np.array([1.0, np.nan]))
    assert str(caught.value) == "x is NaN somewhere; it must be free of NaN. A NaN has no sign to keep."


@pytest.mark.parametrize("dtype", ["int32", "uint8", "complex64", "object"])
def test_packing_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(DtypeError) as caught:
        pack_array(np.ones((1, 2), dtype))
    assert str(caught.value) == (
        f"x has dtype {dtype}; it must be bool or floating point. Pass x > 0 or x.astype(bool) to pack integers."
    )


@pytest.mark.parametrize(("shape", "text"), [((), "()"), ((0,), "(0)"), ((3, 0), "(3, 0)")])
def test_packing_no_columns_is_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        pack_array(np.ones(shape))
    assert str(caught.value) == f"x has shape {text}; it must be (..., D) with D >= 1."


@pytest.mark.parametrize("dtype", ["int64", "float32", "uint8"])
def test_unpacking_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(DtypeError) as caught:
        unpack_array(np.ones((1, 1), dtype), 32)
    assert str(caught.value) == f"words has dtype {dtype}; it must be uint32 (or int32, the same bytes)."


def test_unpacking_words_of_another_width_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        unpack_array(np.ones((5, 3), np.uint32), 64)
    assert str(caught.value) == "words has shape (5, 3); it must be (..., 2) for embedding_dim=64."


@pytest.mark.parametrize("dim", [1, 32, np.int64(7), MAX_EMBEDDING_DIM])
def test_an_embedding_dim_is_any_integer_from_one(dim: Any) -> None:
    assert check_embedding_dim(dim) == int(dim)
    assert type(check_embedding_dim(dim)) is int


@pytest.mark.parametrize("dim", [0, -3, MAX_EMBEDDING_DIM + 1])
def test_an_embedding_dim_out_of_range_is_refused(dim: int) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_embedding_dim(dim)
    assert str(caught.value) == f"embedding_dim is {dim}; it must be in 1..524288."


@pytest.mark.parametrize(("dim", "text"), [(True, "True"), (32.0, "32.0"), ("32", "'32'"), (None, "None")])
def test_an_embedding_dim_that_is_no_integer_is_refused(dim: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_embedding_dim(dim)
    assert str(caught.value) == f"embedding_dim is {text}; it must be an integer."


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize("dtype", ["uint32", "int32"])
def test_words_of_either_library_and_sign_are_accepted(make: Any, dtype: str) -> None:
    library = np if make is np.zeros else torch
    check_words(make((0, 4), dtype=getattr(library, dtype)), 100)


def test_words_of_another_dtype_are_refused() -> None:
    for words in (np.zeros((2, 1), np.int64), torch.zeros((2, 1), dtype=torch.int64)):
        with pytest.raises(DtypeError) as caught:
            check_words(words, 32)
        assert str(caught.value) == (
            "words has dtype int64; it must be uint32 (or int32, the same bytes). packedbag.pack(x) makes words."
        )


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 2, 1)])
def test_words_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        check_words(np.zeros(shape, np.uint32), 32)
    text = "(2)" if shape == (2,) else str(shape)
    assert str(caught.value) == (
        f"words has shape {text}; it must be (V, 1) for embedding_dim=32. 32 weights are one word."
    )


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_view_of_words_shares_memory(library: str) -> None:
    words: Any = np.full((2, 3), 0xFFFFFFFE, np.uint32)
    words = torch.from_numpy(words) if library == "torch" else words
    signed = view_words(words, "int32")
    assert int(signed[0, 0]) == -2
    signed[1, 2] = 5
    assert int(view_words(signed, "uint32")[1, 2]) == int(words[1, 2]) == 5
