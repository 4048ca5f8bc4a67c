"""Every backend that can run here computes what `packedbag.backends.reference` computes, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.backends.reference import bfloat16_bits
from packedbag.backends.registry import REGISTRY
from packedbag.core.layout import tail_mask, unpack_array, words_per_row
from packedbag.core.modes import MODES
from tests.backends.arrays import assert_same
from tests.backends.contenders import NAMES, contenders
from tests.strategies import (
    BOUNDS,
    DIMS,
    GRADIENTS,
    LENGTHS,
    LONG,
    Bags,
    Occurrences,
    bags,
    make_gradient,
    make_words,
    occurrences,
)

BOUND = 1e-6  # DESIGN 2.1: of the sum of |weight * scale|
FLOATS = ("float32", "float16", "bfloat16")


@pytest.fixture(params=contenders(), scope="module")
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_every_backend_of_the_registry_is_compared() -> None:
    assert set(REGISTRY) == {*NAMES, ORACLE.name}


def run_bag(backend: Any, case: Bags) -> tuple[int, np.ndarray]:
    out = case.make_out()
    position = case.call(backend, case.words, case.indices, case.offsets, case.weights, case.row_scale, out)
    return position, out


def assert_bag_equal(backend: Any, case: Bags) -> None:
    position, out = run_bag(backend, case)
    expected_position, expected = run_bag(ORACLE, case)
    assert position == expected_position
    if position < 0:
        assert_same(out, expected)


def make_bags(dim: int, length: int, mode: str, output: str = "float32", *, seed: int = 0) -> Bags:
    """Return three bags of which the second has ``length`` entries and the last is empty."""
    rng = np.random.default_rng(seed)
    return Bags(
        words=make_words(rng, 300, dim),
        indices=rng.integers(0, 300, 2 + length),
        offsets=np.array([0, 2, 2 + length, 2 + length]),
        weights=None,
        row_scale=None,
        embedding_dim=dim,
        mode=mode,
        output=output,
        padding_idx=-1,
        bounds="raise",
    )


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_bags_without_weights_equal_the_oracle(backend: Any, mode: str, data: st.DataObject) -> None:
    assert_bag_equal(backend, data.draw(bags(modes=(mode,))))


@pytest.mark.parametrize("mode", MODES)
def test_every_dim_and_length_equals_the_oracle(backend: Any, mode: str) -> None:
    for dim in DIMS:
        for length in LENGTHS:
            assert_bag_equal(backend, make_bags(dim, length, mode))


@pytest.mark.parametrize(("mode", "output"), [(m.name, o) for m in MODES.values() for o in m.outputs])
def test_every_output_equals_the_oracle(backend: Any, mode: str, output: str) -> None:
    for dim in (1, 64, 100):
        assert_bag_equal(backend, make_bags(dim, 257, mode, output))


@pytest.mark.parametrize("mode", MODES)
def test_bags_of_65536_entries_equal_the_oracle(backend: Any, mode: str) -> None:
    for output in MODES[mode].outputs:
        assert_bag_equal(backend, make_bags(33, LONG, mode, output))


@pytest.mark.parametrize("length", [15, 16, 127, 128, 255, 256, LONG])
@pytest.mark.parametrize("output", ["float32", "int32"])
def test_a_bag_of_one_row_many_times_counts_every_time(backend: Any, output: str, length: int) -> None:
    case = replace(make_bags(65, length, "sum", output), indices=np.full(length + 2, 7))
    _, out = run_bag(backend, case)
    row = np.where(unpack_array(case.words[7], 65), 1, -1)
    np.testing.assert_array_equal(out, [2 * row, length * row, 0 * row])


@pytest.mark.parametrize("bounds", ["clamp", "skip"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lookups_equal_the_oracle(backend: Any, dtype: Any, bounds: str) -> None:
    for dim in (1, 30, 64, 100, 257):
        for mode in MODES:
            case = make_bags(dim, 38, mode)
            indices = case.indices.astype(dtype)[:, None]
            indices[::5], indices[1::7] = -3, 4
            assert_bag_equal(backend, replace(case, indices=indices, offsets=None, bounds=bounds, padding_idx=4))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_table_and_an_empty_batch_equal_the_oracle(backend: Any, mode: str, bounds: str) -> None:
    case = replace(make_bags(33, 0, mode), bounds=bounds, words=np.zeros((0, 2), np.uint32))
    for indices, offsets in (
        (np.zeros((0,), np.int64), np.zeros(4, np.int64)),
        (np.zeros((0,), np.int64), np.zeros(1, np.int64)),
        (np.zeros((4, 0), np.int32), None),
        (np.zeros((0, 5), np.int32), None),
    ):
        assert_bag_equal(backend, replace(case, indices=indices, offsets=offsets))


@pytest.mark.parametrize("bounds", ["raise", "clamp", "skip"])
def test_every_index_is_outside_an_empty_table(backend: Any, bounds: str) -> None:
    case = replace(make_bags(33, 20, "majority"), bounds=bounds, words=np.zeros((0, 2), np.uint32))
    assert_bag_equal(backend, case)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_first_index_outside_is_reported(backend: Any, dtype: Any) -> None:
    case = make_bags(64, 500, "sum")
    for value in (-1, 300, np.iinfo(dtype).min, np.iinfo(dtype).max):
        indices = case.indices.astype(dtype)
        indices[[17, 18, 400]] = value
        assert run_bag(backend, replace(case, indices=indices))[0] == 17


def test_an_index_behind_the_last_bag_is_not_judged(backend: Any) -> None:
    case = make_bags(64, 20, "mean")
    assert_bag_equal(backend, replace(case, indices=np.append(case.indices, [-5, 300])))


@pytest.mark.parametrize("mode", MODES)
def test_tail_bits_of_the_table_do_not_show(backend: Any, mode: str) -> None:
    for dim in (1, 31, 33, 100, 257):
        for output in MODES[mode].outputs:
            case = make_bags(dim, 20, mode, output)
            width = words_per_row(dim)
            cleared = replace(case, words=np.where(np.arange(width) == width - 1, 0, case.words).astype(np.uint32))
            cleared.words[:, -1] = case.words[:, -1] & np.uint32((1 << ((dim - 1) % 32 + 1)) - 1)
            assert_same(run_bag(backend, case)[1], run_bag(backend, cleared)[1])


def exact_interval(case: Bags) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest weighted result (B, D) float64 that DESIGN 2.1 allows, before rounding."""
    rows, positions, ends = ORACLE.keep(
        case.indices, case.offsets, num_embeddings=len(case.words), padding_idx=case.padding_idx, bounds=case.bounds
    )
    factors = np.ones(len(rows))
    if case.weights is not None:
        factors *= case.weights.reshape(-1)[positions]
    if case.row_scale is not None:
        factors *= case.row_scale[rows]
    terms = np.where(unpack_array(case.words[rows], case.embedding_dim), 1.0, -1.0) * factors[:, None]
    exact = np.zeros((case.num_bags, case.embedding_dim))
    size = np.zeros((case.num_bags, 1))
    for b in range(case.num_bags):
        part = slice(ends[b], ends[b + 1])
        count = max(1, ends[b + 1] - ends[b]) if case.mode == "mean" else 1
        exact[b] = terms[part].sum(axis=0) / count
        size[b] = np.abs(factors[part]).sum() / count
    return exact - BOUND * size, exact + BOUND * size


def rounded(values: np.ndarray, output: str) -> np.ndarray:
    """Round float64 to ``output``, and return float32."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
        if output == "bfloat16":
            return (bfloat16_bits(single).astype(np.uint32) << 16).view(np.float32)
        return single.astype(output).astype(np.float32)


def assert_weighted_within_the_bound(backend: Any, case: Bags) -> None:
    position, out = run_bag(backend, case)
    assert position == run_bag(ORACLE, case)[0]
    if position >= 0:
        return
    values = (out.astype(np.uint32) << 16).view(np.float32) if case.output == "bfloat16" else out.astype(np.float32)
    least, largest = (rounded(end, case.output) for end in exact_interval(case))
    # Rounding keeps order, so a sum within the bound is rounded to between its rounded ends.
    assert (values >= least).all()
    assert (values <= largest).all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
@given(data=st.data())
def test_weighted_bags_stay_within_the_bound(backend: Any, mode: str, data: st.DataObject) -> None:
    assert_weighted_within_the_bound(backend, data.draw(bags(modes=(mode,), weighted=True)))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_weighted_bags_of_65536_entries_that_cancel_stay_within_the_bound(backend: Any, mode: str) -> None:
    case = make_bags(33, LONG, mode)
    weights = make_gradient(np.random.default_rng(1), (LONG + 2,), "spread")
    weights[LONG // 2 :] = -weights[: LONG // 2 + 2][::-1]
    for output in FLOATS:
        assert_weighted_within_the_bound(backend, replace(case, output=output, weights=weights))


def sum_that_grows() -> Bags:
    """Return a bag whose sum in single precision leaves the bound: every addition rounds in the same direction."""
    case = replace(make_bags(1, 20000, "sum"), weights=np.full(20002, 0.1, np.float32))
    return replace(case, indices=np.zeros_like(case.indices))


def test_a_long_sum_of_equal_weights_stays_within_the_bound(backend: Any) -> None:
    assert_weighted_within_the_bound(backend, sum_that_grows())


def test_the_oracle_itself_is_within_the_bound() -> None:
    case = make_bags(100, 510, "mean")
    scale = np.random.default_rng(2).normal(size=300).astype(np.float32)
    assert_weighted_within_the_bound(ORACLE, replace(case, row_scale=scale))


def test_the_bound_is_tight_enough_to_reject_a_sum_in_single_precision() -> None:
    class Careless:
        def bag(self, *args: Any, **named: Any) -> int:
            words, indices, offsets, weights, _, out = args
            for b in range(len(offsets) - 1):
                total = np.zeros(out.shape[1], np.float32)
                for i in range(offsets[b], offsets[b + 1]):
                    sign = np.where(unpack_array(words[indices[i]], out.shape[1]), 1, -1).astype(np.float32)
                    total = total + weights[i] * sign
                out[b] = total
            return -1

    with pytest.raises(AssertionError):
        assert_weighted_within_the_bound(Careless(), sum_that_grows())


@given(case=bags(bounds=("raise", "clamp", "skip")))
def test_kept_entries_equal_the_oracle(backend: Any, case: Bags) -> None:
    named = {"num_embeddings": len(case.words), "padding_idx": case.padding_idx, "bounds": case.bounds}
    assert_same(backend.keep(case.indices, case.offsets, **named), ORACLE.keep(case.indices, case.offsets, **named))


@given(case=occurrences())
def test_columns_of_the_maximum_equal_the_oracle(backend: Any, case: Occurrences) -> None:
    args = (case.words, case.rows, case.offsets)
    assert_same(
        backend.max_columns(*args, embedding_dim=case.embedding_dim),
        ORACLE.max_columns(*args, embedding_dim=case.embedding_dim),
    )


def test_columns_of_the_maximum_of_sparse_rows_equal_the_oracle(backend: Any) -> None:
    # One bit in a hundred: the first that is set comes late, or never.
    rng = np.random.default_rng(0)
    words = make_words(rng, 300, 100)
    for _ in range(5):
        words &= rng.integers(0, 2**32, words.shape, dtype=np.uint32)
    words[:, -1] |= np.uint32(0xFFFFFFF0)
    ends = np.cumsum([0, 3, 0, 254, 1, 600, 0])
    rows = rng.integers(0, 300, ends[-1])
    columns = ORACLE.max_columns(words, rows, ends, embedding_dim=100)
    assert_same(backend.max_columns(words, rows, ends, embedding_dim=100), columns)


@given(case=occurrences())
def test_merged_rows_equal_the_oracle(backend: Any, case: Occurrences) -> None:
    assert_same(backend.merge(case.rows), ORACLE.merge(case.rows))


def test_merged_rows_beyond_32_bits_equal_the_oracle(backend: Any) -> None:
    rows = np.array([5, 2**40, 3, 2**40, 2**32 + 5, 5, 2**62, 0])
    assert_same(backend.merge(rows), ORACLE.merge(rows))


def sum_arguments(case: Occurrences, *, columns: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rows, starts, order = ORACLE.merge(case.rows)
    takes = ORACLE.max_columns(case.words, case.rows, case.offsets, embedding_dim=case.embedding_dim)
    named = {
        "weights": case.weights,
        "scale": None if case.row_scale is None else case.row_scale[rows],
        "counts": case.counts,
        "columns": takes if columns else None,
        "factor": case.factor,
    }
    return (case.grad, case.bags, order, starts), named


@given(case=occurrences(), columns=st.booleans())
def test_summed_gradients_equal_the_oracle(backend: Any, case: Occurrences, columns: bool) -> None:
    args, named = sum_arguments(case, columns=columns)
    assert_same(backend.sum_rows(*args, **named), ORACLE.sum_rows(*args, **named))


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_a_hot_row_are_summed_in_order(backend: Any, kind: str) -> None:
    # 1, 63, 64, 65 and 5000 occurrences: a part of a run, one run, one and a part, and many.
    rng = np.random.default_rng(0)
    counts = np.array([1, 63, 64, 65, 5000])
    order = rng.permutation(counts.sum())
    starts = np.concatenate([[0], np.cumsum(counts)])
    grad = make_gradient(rng, (700, 33), kind)
    which = rng.integers(0, 700, counts.sum())
    named = {"weights": None, "scale": None, "counts": None, "columns": None, "factor": 1.0}
    args = (grad, which, order, starts)
    assert_same(backend.sum_rows(*args, **named), ORACLE.sum_rows(*args, **named))


@given(case=occurrences(), data=st.data())
def test_gradients_of_some_of_the_rows_equal_the_oracle(backend: Any, case: Occurrences, data: st.DataObject) -> None:
    (grad, which, order, starts), named = sum_arguments(case, columns=False)
    whole = ORACLE.sum_rows(grad, which, order, starts, **named)
    first = data.draw(st.integers(0, len(starts) - 1))
    last = data.draw(st.integers(first, len(starts) - 1))
    if named["scale"] is not None:
        named["scale"] = named["scale"][first:last].copy()
    part = backend.sum_rows(grad, which, order, starts[first : last + 1].copy(), **named)
    assert_same(part, whole[first:last])


@given(case=occurrences())
def test_gradients_of_weights_equal_the_oracle(backend: Any, case: Occurrences) -> None:
    args = (case.words, case.rows, case.bags, case.grad)
    named = {"embedding_dim": case.embedding_dim, "row_scale": case.row_scale, "counts": case.counts}
    assert_same(backend.weight_gradient(*args, **named), ORACLE.weight_gradient(*args, **named))


@given(case=occurrences())
def test_dot_products_with_rows_equal_the_oracle(backend: Any, case: Occurrences) -> None:
    args = (case.words, case.rows, case.grad[case.bags])
    dim = case.embedding_dim
    assert_same(backend.row_dot(*args, embedding_dim=dim), ORACLE.row_dot(*args, embedding_dim=dim))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("queries", [0, 1, 8, 9])
def test_hamming_distances_equal_the_oracle(backend: Any, dim: int, queries: int) -> None:
    rng = np.random.default_rng(dim)
    words, wanted = make_words(rng, 300, dim), make_words(rng, queries, dim)
    wanted[:, -1] &= np.uint32(tail_mask(dim))  # the table's tail bits are 1
    distances = backend.hamming(words, wanted, embedding_dim=dim)
    assert_same(distances, ORACLE.hamming(words, wanted, embedding_dim=dim))
