"""A backend that sums and updates in one pass gives the bits of doing one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.backends import get, missing, native_cpu
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.protocol import Factors, FusesCounterSteps
from packedbag.backends.reference import BACKEND as ORACLE
from tests.backends.arrays import assert_same
from tests.backends.contenders import cuda, native
from tests.strategies import (
    GRADIENTS,
    Occurrences,
    make_gradient,
    make_row_state,
    make_totals,
    make_words,
    occurrences,
)


def contenders() -> list[Any]:
    """Return the backends that fuse: native_cpu with every instruction set, and CUDA."""
    found = [*native(), *cuda()]
    assert all(isinstance(get(name), FusesCounterSteps) for name in ("native_cpu", "cupy_cuda") if not missing(name))
    return found


@pytest.fixture(params=contenders(), scope="module")
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def rule(
    dim: int,
    bits: int,
    adaptivity: str | None,
    rate: float = 0.3,
    decay: float = 0.0,
    threshold: float = -1.0,
    spacing: float = 0.0,
    columns: int = 1,
) -> CounterRule:
    """Return a rule for ``dim`` counters of so many columns."""
    return CounterRule(
        embedding_dim=dim * columns,
        bits=bits,
        rate=float(np.float32(rate * 2 ** (bits * columns - 1))),
        adaptivity=adaptivity,
        decay=float(np.float32(decay)),
        threshold=float(np.float32(threshold)),
        spacing=spacing,
        group=4 if columns == 1 else 1,
        columns_per_counter=columns,
        seed=0xFEDC_BA98_7654_3210,
        step=3,
        table=1,
    )


def assert_steps_agree(
    backend: Any, words: Any, bags: Any, rows: Any, grad: Any, factors: Factors, rule: CounterRule
) -> None:
    rng = np.random.default_rng(0)
    distinct, starts, order = ORACLE.merge(rows)
    planes = np.stack([make_words(rng, len(words), rule.embedding_dim) for _ in range(rule.bits - 1)], axis=-1).view(
        np.int32
    ) if rule.bits > 1 else np.zeros((*words.shape, 0), np.int32)  # fmt: skip
    row_state = make_row_state(rng, len(words)) if rule.adaptivity else None
    state = (words, planes, row_state, make_totals(rng))
    mine, theirs = ([x if x is None else x.copy() for x in state] for _ in range(2))
    backend.counter_step(*mine, distinct, grad, bags, order, starts, factors=factors, rule=rule)
    ORACLE.counter_update(*theirs, distinct, ORACLE.sum_rows(grad, bags, order, starts, **factors), rule=rule)
    assert_same(tuple(mine), tuple(theirs))


PLAIN = Factors(weights=None, scale=None, counts=None, columns=None, factor=1.0)


@given(
    case=occurrences(),
    bits=st.integers(1, 8),
    adaptivity=st.sampled_from([None, "ema", "adagrad"]),
    decay=st.sampled_from((0.0, 0.0, 1e-3, 0.3)),
    threshold=st.sampled_from((-1.0, -1.0, 0.0, 1.3)),
    columns=st.sampled_from((1, 1, 2, 4, 8)),
)
def test_a_fused_step_equals_sums_and_updates(
    backend: Any, case: Occurrences, bits: int, adaptivity: str | None, decay: float, threshold: float, columns: int
) -> None:
    bits = min(bits, 8 // columns)
    distinct, _, _ = ORACLE.merge(case.rows)
    factors = Factors(
        weights=case.weights,
        scale=None if case.row_scale is None else case.row_scale[distinct],
        counts=case.counts,
        columns=None,
        factor=case.factor,
    )
    how = rule(case.embedding_dim, bits, adaptivity, decay=decay, threshold=threshold, columns=columns)
    words = make_words(np.random.default_rng(columns), len(case.words), how.embedding_dim)
    assert_steps_agree(backend, words, case.bags, case.rows, case.grad, factors, how)


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 96, 128, 129, 2047, 2048, 2049, 2500])
def test_blocks_of_rows_of_every_width_equal_the_oracle(backend: Any, dim: int, kind: str) -> None:
    # Rows that occur once are updated from grad_out itself; the others, and all beyond 2048 columns, from a buffer.
    rng = np.random.default_rng(dim)
    table, entries = (40, 60) if dim > 300 else (200, 400)
    words, grad = make_words(rng, table, dim), make_gradient(rng, (30, dim), kind)
    # In the order of bags, as backward gives them: neighbours share a gradient.
    rows, bags = rng.integers(0, table, entries), np.sort(rng.integers(0, 30, entries))
    assert_steps_agree(backend, words, bags, rows, grad, PLAIN, rule(dim, 8, "ema"))


@pytest.mark.parametrize(("columns", "bits"), [(2, 2), (2, 3), (2, 4), (4, 1), (4, 2), (8, 1)])
@pytest.mark.parametrize("dim", [1, 7, 8, 31, 32, 33, 64, 129, 2049])
def test_counters_of_several_columns_equal_the_oracle(backend: Any, dim: int, columns: int, bits: int) -> None:
    rng = np.random.default_rng(dim)
    table, entries = (40, 60) if dim > 300 else (200, 400)
    words, grad = make_words(rng, table, dim * columns), make_gradient(rng, (30, dim), "normal")
    rows, bags = rng.integers(0, table, entries), np.sort(rng.integers(0, 30, entries))
    how = rule(dim, bits, "ema", decay=0.02, columns=columns)
    assert_steps_agree(backend, words, bags, rows, grad, PLAIN, how)


@pytest.mark.parametrize("counts", [[1, 63, 64, 65, 1000], [129, 1], [3, 100], [64, 128, 127]])
def test_hot_rows_equal_the_oracle(backend: Any, counts: list[int]) -> None:
    # A part of a run, one run, one and a part, many; the last row hot, and not.
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    words, grad = make_words(rng, len(counts), 100), make_gradient(rng, (70, 100), "spread")
    bags = np.sort(rng.integers(0, 70, len(rows)))
    assert_steps_agree(backend, words, bags, rows, grad, PLAIN, rule(100, 8, "ema"))


@pytest.mark.parametrize("rate", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("adaptivity", [None, "adagrad"])
def test_rates_and_gradients_of_any_size_equal_the_oracle(backend: Any, adaptivity: str | None, rate: float) -> None:
    rng = np.random.default_rng(1)
    grad = rng.standard_normal((40, 70)).astype(np.float32)
    grad[::4] *= np.float32(1e-44)  # subnormal, where a rate 2^16 times as large would make a difference
    grad[1::4] *= np.float32(1e30)
    grad[2::8, ::3] = np.inf
    grad[2::8, 1::3] = -np.inf
    rows, bags = rng.integers(0, 50, 90), rng.integers(0, 40, 90)
    words = make_words(rng, 50, 70)
    assert_steps_agree(backend, words, bags, rows, grad, PLAIN, rule(70, 4, adaptivity, rate))


@pytest.mark.parametrize("threshold", [-1.0, 0.8])
@pytest.mark.parametrize("dim", [33, 128, 300])
def test_decay_and_votes_of_rows_that_occur_once_and_often_equal_the_oracle(
    backend: Any, dim: int, threshold: float
) -> None:
    rng = np.random.default_rng(dim)
    words, grad = make_words(rng, 200, dim), make_gradient(rng, (30, dim), "normal")
    rows, bags = np.minimum(rng.integers(0, 400, 700), 199), np.sort(rng.integers(0, 30, 700))
    how = rule(dim, 8, "ema", decay=0.02, threshold=threshold, spacing=17.5)
    assert_steps_agree(backend, words, bags, rows, grad, PLAIN, how)


def test_nothing_happens_without_rows(backend: Any) -> None:
    words = make_words(np.random.default_rng(0), 5, 40)
    none = np.zeros(0, np.int64)
    assert_steps_agree(backend, words, none, none, np.zeros((0, 40), np.float32), PLAIN, rule(40, 3, "ema"))


def test_steps_do_not_depend_on_threads(backend: Any) -> None:
    if not isinstance(backend, native_cpu.NativeCpu):
        pytest.skip("only native_cpu shares work among threads of its own")
    rng = np.random.default_rng(2)
    words, grad = make_words(rng, 3000, 128), rng.standard_normal((100, 128)).astype(np.float32)
    rows, bags = rng.integers(0, 3000, 4000), np.sort(rng.integers(0, 100, 4000))
    before = native_cpu.threads()
    native_cpu.set_threads(4)
    try:
        assert_steps_agree(backend, words, bags, rows, grad, PLAIN, rule(128, 5, "ema"))
    finally:
        native_cpu.set_threads(before)
