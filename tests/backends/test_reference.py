"""The oracle against truths that owe it nothing: torch's EmbeddingBag, cases by hand, scalar arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.backends.reference import bfloat16_bits, lane_sum
from packedbag.core.layout import pack_array, unpack_array
from tests.backends.scalars import F, scalar_sum_of_squares
from tests.strategies import Bags, Occurrences, bags, make_words, occurrences


def bag(words: np.ndarray, indices: Any, dim: int, *, mode: str, **changed: Any) -> np.ndarray:
    """Return what the oracle makes of 2-D ``indices``; it must find none outside."""
    case = Bags(
        words=words,
        indices=np.asarray(indices),
        offsets=None,
        weights=None,
        row_scale=None,
        embedding_dim=dim,
        mode=mode,
        output="float32",
        padding_idx=-1,
        bounds="raise",
    )
    case = replace(case, **changed)
    out = case.make_out()
    assert case.call(ORACLE, case.words, case.indices, case.offsets, case.weights, case.row_scale, out) == -1
    return out


def torch_bag(case: Bags, weight: torch.Tensor, mode: str) -> torch.Tensor:
    """Return `nn.EmbeddingBag`'s result with these weights and this padding."""
    # Offsets in any case: torch refuses 2-D indices of no columns.
    length = case.indices.shape[-1]
    ends = np.arange(case.num_bags + 1) * length if case.offsets is None else case.offsets
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(case.indices.reshape(-1)[: ends[-1]]).long(),
        weight,
        torch.from_numpy(ends),
        mode=mode,
        include_last_offset=True,
        padding_idx=case.padding_idx if case.padding_idx >= 0 else None,
    )


def signs_of(case: Any) -> torch.Tensor:
    return torch.from_numpy(np.where(unpack_array(case.words, case.embedding_dim), F(1), F(-1)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@given(data=st.data())
def test_bags_are_those_of_torch_with_weights_of_plus_and_minus_one(mode: str, data: st.DataObject) -> None:
    case = replace(data.draw(bags(modes=(mode,), bounds=("unchecked",))), output="float32")
    out = case.make_out()
    case.call(ORACLE, case.words, case.indices, case.offsets, None, None, out)
    np.testing.assert_array_equal(out, torch_bag(case, signs_of(case), mode))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@settings(max_examples=30)
@given(data=st.data())
def test_gradients_are_those_of_torch(mode: str, data: st.DataObject) -> None:
    case = data.draw(bags(modes=(mode,), bounds=("unchecked",)))
    weight = signs_of(case).requires_grad_()
    # Integers, so that every order of additions gives the same, up to the mean's divisions.
    grad = np.random.default_rng(0).integers(-8, 9, (case.num_bags, case.embedding_dim)).astype(F)
    torch_bag(case, weight, mode).backward(torch.from_numpy(grad))
    rows, _, ends = ORACLE.keep(
        case.indices, case.offsets, num_embeddings=len(case.words), padding_idx=case.padding_idx, bounds=case.bounds
    )
    counts = np.diff(ends)
    which = np.repeat(np.arange(case.num_bags), counts)
    distinct, starts, order = ORACLE.merge(rows)
    columns = ORACLE.max_columns(case.words, rows, ends, embedding_dim=case.embedding_dim) if mode == "max" else None
    divisors = np.maximum(counts, 1).astype(F) if mode == "mean" else None
    factors = {"weights": None, "scale": None, "counts": divisors, "columns": columns, "factor": 1.0}
    dense = np.zeros(weight.shape, F)
    dense[distinct] = ORACLE.sum_rows(grad, which, order, starts, **factors)
    assert weight.grad is not None
    np.testing.assert_allclose(dense, weight.grad, rtol=0, atol=0 if mode != "mean" else 1e-4)


def test_gradients_of_weights_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    words, indices = make_words(rng, 20, 100), rng.integers(0, 20, (6, 9))
    weights = torch.from_numpy(rng.standard_normal((6, 9)).astype(F)).requires_grad_()
    grad = rng.standard_normal((6, 100)).astype(F)
    table = torch.from_numpy(np.where(unpack_array(words, 100), F(1), F(-1)))
    out = torch.nn.functional.embedding_bag(torch.from_numpy(indices), table, mode="sum", per_sample_weights=weights)
    out.backward(torch.from_numpy(grad))
    mine = ORACLE.weight_gradient(
        words, indices.reshape(-1), np.repeat(np.arange(6), 9), grad, embedding_dim=100, row_scale=None, counts=None
    )
    assert weights.grad is not None
    np.testing.assert_allclose(mine.reshape(6, 9), weights.grad, rtol=1e-5, atol=1e-5)


def test_a_row_scale_and_a_count_are_factors_of_the_gradient_of_weights() -> None:
    words = pack_array(np.array([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]))
    grad = np.array([[1, 2, 4], [8, 16, 32]], F)
    named = {"embedding_dim": 3, "row_scale": np.array([10, 100], F), "counts": np.array([1, 2], F)}
    rows, which = np.array([0, 1, 1]), np.array([0, 0, 1])
    # Row 0 is + - +, row 1 is - - +: 1 - 2 + 4 = 3, -1 - 2 + 4 = 1, -8 - 16 + 32 = 8.
    np.testing.assert_array_equal(ORACLE.weight_gradient(words, rows, which, grad, **named), [30, 100, 400])


PLUS_MINUS = pack_array(np.array([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]))


def test_a_tie_is_plus_one_for_majority() -> None:
    np.testing.assert_array_equal(bag(PLUS_MINUS, [[0, 1], [1, 2]], 3, mode="majority"), [[1, 1, -1], [1, 1, -1]])


def test_one_more_minus_than_plus_is_minus_one_for_majority() -> None:
    np.testing.assert_array_equal(
        bag(PLUS_MINUS, [[1, 1, 0], [2, 2, 1]], 3, mode="majority"), [[1, -1, -1], [-1, 1, -1]]
    )


@pytest.mark.parametrize(("mode", "value"), [("sum", 0), ("mean", 0), ("max", 0), ("majority", 1)])
def test_an_empty_bag_has_the_value_of_its_mode(mode: str, value: int) -> None:
    np.testing.assert_array_equal(bag(PLUS_MINUS, np.zeros((2, 0), np.int64), 3, mode=mode), np.full((2, 3), value))


@pytest.mark.parametrize(("mode", "word"), [("majority", 0b111), ("max", 0)])
def test_an_empty_bag_in_packed_bits_is_all_ones_for_majority_and_zeros_for_max(mode: str, word: int) -> None:
    out = bag(PLUS_MINUS, np.zeros((2, 0), np.int64), 3, mode=mode, output="uint32")
    np.testing.assert_array_equal(out, [[word], [word]])


def test_packed_bits_are_those_of_the_columns_above_zero() -> None:
    np.testing.assert_array_equal(bag(PLUS_MINUS, [[1, 2], [1, 1]], 3, mode="max", output="uint32"), [[0b011], [0b001]])


def test_a_mean_is_one_division_not_a_product_with_the_reciprocal() -> None:
    words = pack_array(np.array([[1.0], [-1.0]]))
    quotients, products = [], []
    for count in range(1, 200):
        for ones in (count, (2 * count) // 3 + 1):
            indices = np.array([[0] * ones + [1] * (count - ones)])
            quotients.append(bag(words, indices, 1, mode="mean")[0, 0])
            assert quotients[-1] == F(2 * ones - count) / F(count)
            products.append(F(2 * ones - count) * (F(1) / F(count)))
    assert (np.array(quotients) != np.array(products)).any()


def test_padding_is_dropped_before_bounds_are_applied_and_is_not_counted() -> None:
    indices = np.array([[2, 0, 99, -7]])
    # 99 clamps to row 2: it is a row like any other, though row 2 is the padding.
    clamped = bag(PLUS_MINUS, indices, 3, mode="mean", padding_idx=2, bounds="clamp")
    np.testing.assert_array_equal(clamped, np.array([[1 - 1 + 1, 1 + 1 + 1, -3]], F) / F(3))
    skipped = bag(PLUS_MINUS, indices, 3, mode="mean", padding_idx=2, bounds="skip")
    np.testing.assert_array_equal(skipped, [[1, 1, -1]])


def test_a_row_counts_as_often_as_it_occurs() -> None:
    np.testing.assert_array_equal(bag(PLUS_MINUS, [[1, 1, 1, 2]], 3, mode="sum"), [[2, -2, -4]])


def test_a_weighted_mean_of_one_entry_is_the_entry() -> None:
    out = bag(PLUS_MINUS, [[1]], 3, mode="mean", weights=np.array([[0.3]], F))
    np.testing.assert_array_equal(out, np.array([[0.3, -0.3, -0.3]], F))


def test_a_weighted_mean_divides_by_the_number_of_entries() -> None:
    weights = np.array([[2.0, 3.0, 5.0]], F)
    scale = np.array([1.0, 10.0, 100.0], F)
    out = bag(PLUS_MINUS, [[0, 1, 2]], 3, mode="mean", weights=weights, row_scale=scale)
    np.testing.assert_array_equal(out, np.array([[2 + 30 - 500, 2 - 30 + 500, -532]], F) / F(3))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (1.00390625, 0x3F80),  # halfway between two: to the even one, below
        (1.01171875, 0x3F82),  # halfway between two: to the even one, above
        (-0.0, 0x8000),
        (3.4e38, 0x7F80),  # beyond the largest: infinity
        (math.inf, 0x7F80),
        (1e-40, 0x0001),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert bfloat16_bits(np.array([value], F))[0] == bits


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_nan_stays_one_in_bfloat16_whatever_its_payload(payload: int) -> None:
    bits = int(bfloat16_bits(np.array([payload], np.uint32).view(F))[0])
    assert np.isnan(np.array([bits << 16], np.uint32).view(F)[0])


@settings(max_examples=20)
@given(case=occurrences())
def test_the_maximum_is_taken_by_the_first_entry_that_has_it(case: Occurrences) -> None:
    dim = case.embedding_dim
    takes = unpack_array(ORACLE.max_columns(case.words, case.rows, case.offsets, embedding_dim=dim), dim)
    signs = np.where(unpack_array(case.words[case.rows], dim), 1, -1)
    for start, end in zip(case.offsets[:-1], case.offsets[1:], strict=True):
        for column in range(0, dim, 17):
            values = signs[start:end, column].tolist()
            expected = [i == values.index(max(values)) for i in range(len(values))]
            assert takes[start:end, column].tolist() == expected


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100, 257])
def test_lanes_are_added_in_the_order_of_the_design(dim: int) -> None:
    rng = np.random.default_rng(dim)
    x = (rng.standard_normal((4, dim)) * 10 ** rng.uniform(-3, 3, (4, dim))).astype(F)
    np.testing.assert_array_equal(lane_sum(x * x), [scalar_sum_of_squares(list(row)) for row in x])


def test_runs_of_64_are_added_in_order() -> None:
    # 2^24 + 1 rounds back to 2^24: how many of the ones survive tells the order and the length of the runs.
    ones = np.ones((200, 1), F)
    ones[0] = 2.0**24
    place = np.arange(200)
    named = {"weights": None, "scale": None, "counts": None, "columns": None, "factor": 1.0}
    total = ORACLE.sum_rows(ones, place, place, np.array([0, 200]), **named)
    assert total[0, 0] == 2.0**24 + 64 + 64 + 8
    backwards = ORACLE.sum_rows(ones, place, place[::-1].copy(), np.array([0, 200]), **named)
    assert backwards[0, 0] == 2.0**24 + 64 + 64 + 64 + 8  # seven ones come before 2^24, whose sum rounds to + 8


def test_equal_rows_are_grouped_in_order_of_position() -> None:
    rows = np.random.default_rng(0).integers(0, 50, 5000) * 2**35
    distinct, starts, order = ORACLE.merge(rows)
    assert distinct.tolist() == sorted(set(rows.tolist()))
    for u, row in enumerate(distinct):
        assert order[starts[u] : starts[u + 1]].tolist() == [i for i, r in enumerate(rows) if r == row]


def test_factors_are_multiplied_one_by_one_then_divided() -> None:
    rng = np.random.default_rng(0)
    grad, w = rng.standard_normal((1, 50)).astype(F), F(1 / 3)
    s, n, f = F(0.7), F(7), F(0.9)
    named = {"weights": np.array([w]), "scale": np.array([s]), "counts": np.array([n]), "columns": None}
    total = ORACLE.sum_rows(grad, np.array([0]), np.array([0]), np.array([0, 1]), **named, factor=float(f))
    expected = [(((g * w) * s) / n) * f for g in grad[0]]
    np.testing.assert_array_equal(total[0], np.array(expected, F))
