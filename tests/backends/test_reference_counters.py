"""The oracle's update of counters against scalar float32 arithmetic, statistics, and cases whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.core import totals
from packedbag.core.layout import unpack_array, words_per_row
from packedbag.core.totals import TYPICAL
from packedbag.core.touches import mixed
from tests.backends.scalars import F, scalar_sum_of_squares
from tests.strategies import Counters, counters, make_row_state


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds of Philox4x32 in Python's integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def random_16_bits(case: Counters, row: int, column: int) -> int:
    row, column = case.first_row + row, case.first_column // case.columns_per_counter + column
    counter = [row % 2**32, row >> 32, case.step, case.table << 16 | column // 8]
    words = philox_by_hand(counter, [case.seed % 2**32, case.seed >> 32])
    return words[column % 8 // 2] >> (16 if column % 2 else 0) & 0xFFFF


def scalar_touches(code: int, case: Counters, row: int) -> tuple[int, int]:
    """Return the code after one more touch, and the number it stands for."""
    octave, part = divmod(max(code - 128, 0), 8)
    random = int(mixed(np.array([case.first_row + row]), seed=case.seed, step=case.step, table=case.table)[0])
    if code < 128 or (random % 2 ** (octave + 4) == 0 and code < 255):
        code += 1
    octave, part = divmod(max(code - 128, 0), 8)
    return code, code if code < 128 else (8 + part) * 2 ** (octave + 4)


def scalar_update(case: Counters, i: int) -> tuple[list[int], int | None]:
    """Return the counters of the i-th row after the update, and its state word, by float32 scalars."""
    row, g = int(case.rows[i]), list(case.grad[i])
    dim, half = len(g), 2 ** (case.bits * case.columns_per_counter - 1)
    votes = case.threshold >= 0
    r, shrink, word = F(1 if votes else case.rate), F(min(case.decay, 0.125)), None
    if case.row_state is not None:
        state = int(case.row_state[row]) % 2**32
        code, touches = scalar_touches(state & 255, case, row)
        old = np.array([state & ~255], np.uint32).view(F)[0]
        q = scalar_sum_of_squares(g) / F(dim)
        q = q if q < np.finfo(F).max else np.finfo(F).max
        s = old + (q - old) / F(min(touches, 100)) if case.adaptivity == "ema" else min(old + q, np.finfo(F).max)
        word = int(np.array([s], F).view(np.uint32)[0]) & ~255 | code
        root = np.sqrt(s) + F(1e-8)
        r = r / root
        typical = np.array([case.totals[TYPICAL]]).astype(np.uint32).view(F)[0]
        due = F(case.decay) * np.sqrt(typical) * (F(case.step + 1) / F(touches)) / root
        shrink = min(due, F(0.125)) if s > 0 else F(0)
    values = []
    for j in range(dim):
        v = scalar_counter(case.words[row], case.planes[row], j, case.columns_per_counter)
        x = r * g[j]
        if votes:
            x = F(math.copysign(case.rate, x)) if abs(x) > F(case.threshold) else F(0)
        if case.decay > 0:
            x = x + shrink * F(v + 0.5 - case.spacing * (j % case.group - (case.group - 1) / 2))
        t = F(0) if np.isnan(x) else min(abs(x), F(2 * half))
        whole = math.floor(t)
        up = F(random_16_bits(case, row, j)) + F(0.5) < F(65536) * (t - F(whole))
        n = whole + bool(up)
        v = v - n if x > 0 else v + n if x < 0 else v
        values.append(max(-half, min(half - 1, v)))
    return values, word


def scalar_counter(words: np.ndarray, planes: np.ndarray, counter: int, columns: int) -> int:
    """Return counter number ``counter`` of a row, bit by bit."""
    layers = [planes[:, p] for p in range(planes.shape[1])] + [words]
    mine = range(counter * columns, (counter + 1) * columns)
    bits = [int(layer[j // 32]) >> (j % 32) & 1 for layer in layers for j in mine]
    if columns == 1:
        *confidence, positive = bits
        m = sum(bit << place for place, bit in enumerate(confidence))
        return m if positive else -1 - m
    return sum(bit << place for place, bit in enumerate(bits)) - 2 ** (len(bits) - 1)


def counter_values(words: np.ndarray, planes: np.ndarray, dim: int) -> np.ndarray:
    """Return v (V, D) from its sign bits and planes."""
    m = np.zeros((len(words), dim), int)
    for p in range(planes.shape[2]):
        m += unpack_array(np.ascontiguousarray(planes[:, :, p]), dim).astype(int) << p
    return np.where(unpack_array(words, dim), m, -1 - m)


@settings(max_examples=40)
@given(case=counters(dims=st.sampled_from((1, 8, 9, 31, 33, 40))))
def test_an_update_is_the_designs_formula_in_scalars(case: Counters) -> None:
    words, planes = case.words.copy(), case.planes.copy()
    state = None if case.row_state is None else case.row_state.copy()
    case.call(ORACLE, words, planes, state, case.totals.copy(), case.rows, case.grad)
    columns, counters_of_row = case.columns_per_counter, range(case.grad.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for i, row in enumerate(case.rows[:5]):
            expected, word = scalar_update(case, i)
            values = [scalar_counter(words[row], planes[row], j, columns) for j in counters_of_row]
            assert values == expected
            if state is not None:
                assert int(state[row]) % 2**32 == word


def test_the_step_is_divided_by_the_whole_statistic_not_by_what_is_stored_of_it() -> None:
    # The stored word lacks 8 bits of S: that moves steps of about 60 by up to 0.001, hence some of 5,120 roundings.
    rng = np.random.default_rng(0)
    case = make_counters(20, 256, 8, 0, grad=rng.standard_normal((20, 256)).astype(F), rate=60.0, adaptivity="adagrad")
    case = replace(case, row_state=make_row_state(rng, 20))
    expected = [scalar_update(case, i)[0] for i in range(20)]
    np.testing.assert_array_equal(values_after(case), expected)


def test_a_step_is_rounded_up_where_its_fraction_is_above_the_middle_of_the_random_interval() -> None:
    case = make_counters(3, 64, 8, 0.0)
    h = np.array([[random_16_bits(case, row, column) for column in range(64)] for row in range(3)])
    for place, up in ((0.0, 0), (0.25, 0), (0.5, 0), (0.75, 1)):
        grad = (-(5 + (h + place) / 65536)).astype(F)
        # float32 keeps these 19 + 2 bits whole, so the fraction is exactly (h + place) / 65536.
        assert ((-grad.astype(float) - 5) * 65536 == h + place).all()
        np.testing.assert_array_equal(values_after(make_counters(3, 64, 8, 0.0, grad=grad)), 5 + up)


@pytest.mark.parametrize("adaptivity", [None, "ema", "adagrad"])
def test_a_gradient_that_overflowed_both_ways_moves_nothing_and_an_infinite_one_saturates(
    adaptivity: str | None,
) -> None:
    grad = np.array([[np.nan, np.inf, -np.inf, 0.0]], F)
    state = np.zeros(1, np.int32) if adaptivity else None
    case = make_counters(1, 4, 4, 0, grad=grad, row_state=state, adaptivity=adaptivity)
    np.testing.assert_array_equal(values_after(case), [[0, -8, 7, 0]])


@settings(max_examples=30)
@given(case=counters())
def test_an_update_leaves_other_rows_alone_and_clears_the_tails_of_its_own(case: Counters) -> None:
    words, planes = case.words.copy(), case.planes.copy()
    state = None if case.row_state is None else case.row_state.copy()
    case.call(ORACLE, words, planes, state, case.totals.copy(), case.rows, case.grad)
    others = np.setdiff1d(np.arange(len(words)), case.rows)
    np.testing.assert_array_equal(words[others], case.words[others])
    np.testing.assert_array_equal(planes[others], case.planes[others])
    tail = ~np.uint32((1 << ((case.grad.shape[1] - 1) % 32 + 1)) - 1)
    assert not (words[case.rows, -1] & tail).any()
    assert not (planes[case.rows, -1].view(np.uint32) & tail).any()
    if state is not None:
        np.testing.assert_array_equal(state[others], case.row_state[others])


@settings(max_examples=20)
@given(case=counters())
def test_rows_updated_one_at_a_time_are_those_updated_at_once(case: Counters) -> None:
    states = []
    for parts in ([slice(None)], [slice(i, i + 1) for i in reversed(range(len(case.rows)))]):
        state = [None if x is None else x.copy() for x in (case.words, case.planes, case.row_state, case.totals)]
        for part in parts:
            case.call(ORACLE, *state, case.rows[part], case.grad[part])
        states.append(state)
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def make_counters(rows: int, dim: int, bits: int, x: float, **changed: Any) -> Counters:
    """Return fresh counters of 0 (bits of 1) whose step is ``x`` in every column."""
    case = Counters(
        words=np.full((rows, words_per_row(dim)), 0xFFFFFFFF, np.uint32),
        planes=np.zeros((rows, words_per_row(dim), bits - 1), np.int32),
        row_state=None,
        totals=totals.new(),
        rows=np.arange(rows),
        grad=np.full((rows, dim), x, F),
        bits=bits,
        rate=1.0,
        adaptivity=None,
        seed=1,
        step=0,
        table=0,
    )
    return replace(case, **changed)


def values_after(case: Counters) -> np.ndarray:
    case.call(ORACLE, case.words, case.planes, case.row_state, case.totals, case.rows, case.grad)
    return counter_values(case.words, case.planes, case.grad.shape[1])


@pytest.mark.parametrize("x", [0.3, -0.3, 2.71, -5.01, 1 / 65536, 0.0])
def test_rounding_is_unbiased(x: float) -> None:
    values = values_after(make_counters(400, 256, 8, x))
    # The mean of 102,400 roundings, whose deviation is at most 1/2: five standard errors.
    fraction = abs(x) % 1
    allowed = 5 * math.sqrt(fraction * (1 - fraction) / values.size) + 1 / 131072
    assert abs(values.mean() - -x) <= allowed


def test_a_step_of_an_integer_is_never_rounded() -> None:
    np.testing.assert_array_equal(values_after(make_counters(50, 64, 8, -3.0)), 3)


def test_a_bit_flip_happens_with_the_probability_of_its_step() -> None:
    flipped = values_after(make_counters(400, 256, 1, 0.25)) == -1
    assert abs(flipped.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / flipped.size)


@pytest.mark.parametrize("bits", range(1, 9))
def test_counters_saturate(bits: int) -> None:
    assert (values_after(make_counters(3, 40, bits, -1e30)) == 2 ** (bits - 1) - 1).all()
    assert (values_after(make_counters(3, 40, bits, 1e30)) == -(2 ** (bits - 1))).all()


@pytest.mark.parametrize("changed", [{"seed": 2}, {"seed": 1 + 2**32}, {"step": 1}, {"table": 1}])
def test_seed_step_and_table_each_change_the_random_numbers(changed: dict[str, int]) -> None:
    same = values_after(make_counters(20, 64, 8, 0.5))
    np.testing.assert_array_equal(values_after(make_counters(20, 64, 8, 0.5)), same)
    other = values_after(make_counters(20, 64, 8, 0.5, **changed))
    assert 0.4 < (other != same).mean() < 0.6


def test_rows_and_columns_have_random_numbers_of_their_own() -> None:
    values = values_after(make_counters(300, 256, 8, 0.5)).astype(float)
    assert len(np.unique(values, axis=0)) == 300
    assert len(np.unique(values, axis=1).T) == 256
    between = np.corrcoef(values.T)
    assert np.abs(between - np.eye(256)).max() < 6 / math.sqrt(300)


def test_ema_is_the_plain_mean_of_the_first_100_squares_and_forgets_after() -> None:
    state = np.zeros(1, np.int32)
    squares = np.random.default_rng(0).uniform(1, 9, 150)
    expected = 0.0
    for touch, square in enumerate(squares, 1):
        grad = np.full((1, 32), math.sqrt(square), F)
        case = make_counters(1, 32, 2, 0, row_state=state, adaptivity="ema", grad=grad)
        values_after(case)
        expected += (square - expected) / min(touch, 100)
        code = int(state[0]) & 255
        assert code == touch if touch <= 128 else 128 <= code <= 130
        stored = np.array([int(state[0]) & ~255], np.int32).view(F)[0]
        assert abs(stored / expected - 1) < 2**-15 * min(touch, 100)  # 8 of 24 mantissa bits hold the touches
        if touch == 100:
            assert abs(expected / squares[:100].mean() - 1) < 1e-9


def test_adagrad_is_the_sum_of_the_mean_squares() -> None:
    state = np.zeros(1, np.int32)
    for _ in range(10):
        values_after(make_counters(1, 40, 2, 2.0, row_state=state, adaptivity="adagrad"))
    assert np.array([int(state[0]) & ~255], np.int32).view(F)[0] == 40
    assert int(state[0]) & 255 == 10


@pytest.mark.parametrize("adaptivity", ["ema", "adagrad"])
def test_the_statistic_is_updated_before_it_is_used(adaptivity: str) -> None:
    # A first gradient is divided by its own size, so that its step is the rate, whatever its scale.
    for size in (1e-3, 1.0, 1e5):
        state = np.zeros(5, np.int32)
        case = make_counters(5, 64, 8, -size, row_state=state, adaptivity=adaptivity, rate=3.0)
        values = values_after(case)
        assert 2.99 < values.mean() < 3.01


def test_state_words_of_extreme_gradients_stay_finite() -> None:
    for adaptivity in ("ema", "adagrad"):
        state = make_row_state(np.random.default_rng(0), 30)
        grad = np.full((30, 33), 3e38, F)
        for _ in range(3):
            values_after(make_counters(30, 33, 4, 0, row_state=state, adaptivity=adaptivity, grad=grad))
            assert np.isfinite((state.view(np.uint32) & np.uint32(0xFFFFFF00)).view(F)).all()


@settings(max_examples=30)
@given(case=counters())
def test_totals_count_flips_rows_and_statistics(case: Counters) -> None:
    words, planes, found = case.words.copy(), case.planes.copy(), case.totals.copy()
    state = None if case.row_state is None else case.row_state.copy()
    case.call(ORACLE, words, planes, state, found, case.rows, case.grad)
    dim = case.embedding_dim
    added = found - case.totals
    flips = (unpack_array(words, dim) != unpack_array(case.words, dim)).sum()
    kept = [] if state is None else [int(word) % 2**32 & ~255 for word in state[case.rows]]
    expected = [flips, len(case.rows), sum(word > 0 for word in kept), sum(kept)]
    assert added.tolist() == [*expected, 0, 0, 0, 0]


def test_words_held_as_int32_are_updated_like_uint32() -> None:
    case = make_counters(10, 70, 5, 0.6)
    signed = replace(case, words=case.words.view(np.int32).copy(), planes=case.planes.copy())
    np.testing.assert_array_equal(values_after(signed), values_after(case))
