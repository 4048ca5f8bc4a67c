"""The random numbers: the published vectors, and how rows and columns are laid on the counter."""

from __future__ import annotations

import numpy as np
import pytest

from packedbag.core.philox import halfwords, philox4x32

ALL_ONES = 0xFFFFFFFF

#: Known answers of Philox4x32-10, from Random123's kat_vectors: counter, key, output.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ALL_ONES] * 4, (ALL_ONES, ALL_ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_the_published_vectors(counter: list[int], key: tuple[int, int], output: list[int]) -> None:
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == output


def test_many_counters_are_each_their_own() -> None:
    counters = np.array([[k[0] for k in KNOWN[:1] * 3], [KNOWN[1][0]] * 3], np.uint32)
    out = philox4x32(counters, (0, 0))
    assert out.shape == (2, 3, 4)
    assert out.dtype == np.uint32
    assert out[0, 2].tolist() == KNOWN[0][2]


def test_a_halfword_is_eight_columns_of_a_counter_low_half_first() -> None:
    row, seed, step, table = 7 + (3 << 32), 0x0123_4567_89AB_CDEF, 41, 9
    drawn = halfwords(np.array([0, row]), 100, seed=seed, step=step, table=table)
    assert drawn.shape == (2, 100)
    for column in (0, 1, 2, 7, 8, 63, 99):
        counter = np.array([7, 3, step, table << 16 | column // 8], np.uint32)
        word = int(philox4x32(counter, (0x89AB_CDEF, 0x0123_4567))[column % 8 // 2])
        assert drawn[1, column] == (word >> 16 if column % 2 else word & 0xFFFF)


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 1000])
def test_more_columns_change_no_earlier_one(dim: int) -> None:
    rows = np.arange(3)
    wide = halfwords(rows, 1001, seed=5, step=0, table=0)
    np.testing.assert_array_equal(halfwords(rows, dim, seed=5, step=0, table=0), wide[:, :dim])


def test_no_rows_draw_nothing() -> None:
    assert halfwords(np.zeros(0, np.int64), 33, seed=0, step=0, table=0).shape == (0, 33)


def test_the_last_table_and_the_widest_row_fit_the_counter() -> None:
    drawn = halfwords(np.array([2**62]), 8 * 65536, seed=2**64 - 1, step=2**32 - 1, table=65535)
    counter = np.array([0, 2**30, ALL_ONES, ALL_ONES], np.uint32)
    assert drawn[0, -1] == int(philox4x32(counter, (ALL_ONES, ALL_ONES))[3]) >> 16


def test_halfwords_are_uniform() -> None:
    drawn = halfwords(np.arange(2000), 512, seed=3, step=1, table=0)
    counts = np.bincount(drawn.reshape(-1) >> 8, minlength=256)
    # Chi-squared with 255 degrees of freedom: mean 255, deviation 22.6.
    expected = drawn.size / 256
    assert 150 < ((counts - expected) ** 2 / expected).sum() < 370
    for bit in range(16):
        assert abs((drawn >> bit & 1).mean() - 0.5) < 0.003
