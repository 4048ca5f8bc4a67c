"""The 8-bit code of how often a row was touched: exact, monotonous, and right on average."""

from __future__ import annotations

import numpy as np

from packedbag.core.touches import EXACT, LARGEST, mixed, touched, touches_of

CODES = np.arange(256, dtype=np.uint32)


def after(touches: int, rows: int, seed: int = 0) -> np.ndarray:
    """Return the codes of ``rows`` rows after so many touches."""
    code = np.zeros(rows, np.int32)
    numbers = np.arange(rows, dtype=np.int64)
    for step in range(touches):
        code = touched(code, mixed(numbers, seed=seed, step=step, table=1)).view(np.int32)
    return code.view(np.uint32)


def test_codes_are_the_number_itself_up_to_128_and_then_grow_by_eighths_of_an_octave() -> None:
    numbers = touches_of(CODES)
    np.testing.assert_array_equal(numbers[: EXACT + 1], np.arange(EXACT + 1))
    assert numbers[EXACT + 8] == 2 * EXACT
    assert (np.diff(numbers) > 0).all()
    assert (np.diff(numbers)[EXACT:] * 8 <= numbers[EXACT:-1]).all()


def test_the_first_128_touches_are_counted_one_by_one() -> None:
    for touches in (0, 1, 100, 127, 128):
        assert (touches_of(after(touches, 50)) == touches).all()


def test_more_touches_are_counted_right_on_average() -> None:
    counts = touches_of(after(1000, 4000))
    assert abs(counts.mean() - 1000) < 10  # about 3 standard errors: a count's own deviation is a fifth of it
    assert 100 < counts.std() < 300


def test_the_largest_code_stays() -> None:
    state = np.full(1000, LARGEST, np.int32)
    assert (touched(state, np.zeros(1000, np.uint32)) == LARGEST).all()


def test_only_the_low_byte_of_a_state_word_is_read() -> None:
    statistic = np.array([0x3F800000], np.uint32).view(np.int32)
    assert touched(statistic | 5, np.zeros(1, np.uint32)) == 6


def test_the_hash_is_murmurs_finalizer_in_plain_integers() -> None:
    row, seed, step, table = 2**33 + 12345, 2**40 + 7, 99, 3
    h = row % 2**32 * 0x9E3779B1 ^ (row >> 32) * 0x85EBCA77
    h = (h ^ seed ^ step * 0xC2B2AE3D ^ table * 0x27D4EB2F) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    h ^= h >> 16
    assert mixed(np.array([row]), seed=seed, step=step, table=table)[0] == h


def test_random_bits_differ_between_rows_steps_tables_and_seeds() -> None:
    rows = np.arange(64, dtype=np.int64)
    base = {"seed": 1, "step": 2, "table": 3}
    drawn = [mixed(rows, **{**base, name: base[name] + more}) for name in base for more in (0, 1)]
    distinct = {tuple(d.tolist()) for d in drawn}
    assert len(distinct) == 4
    assert all(len(set(d.tolist())) == 64 for d in drawn)
