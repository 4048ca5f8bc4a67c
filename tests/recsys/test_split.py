"""`packedbag.recsys.split`."""

import numpy as np
import pytest

from packedbag.core.errors import ArgumentError
from packedbag.recsys import split
from packedbag.recsys.split import TEST, TRAIN, VALID, RandomSplit, TimeSplit, time_cuts

NO_TIMES = np.empty(0)


def test_a_random_split_is_80_10_10():
    parts = RandomSplit(3).parts(np.arange(100_000), NO_TIMES)
    shares = np.bincount(parts, minlength=3) / 100_000
    # The standard deviation of a tenth of 100,000 rows is 95.
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.005)


def test_a_row_keeps_its_part_however_the_rows_are_read():
    whole = RandomSplit(3).parts(np.arange(1000), NO_TIMES)
    pieces = [RandomSplit(3).parts(np.arange(i, i + 100), NO_TIMES) for i in range(0, 1000, 100)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    assert (whole != RandomSplit(4).parts(np.arange(1000), NO_TIMES)).any()


def test_rows_beyond_32_bits_are_told_apart():
    low = RandomSplit(0).parts(np.arange(1000), NO_TIMES)
    high = RandomSplit(0).parts(np.arange(1000) + 2**32, NO_TIMES)
    assert (low != high).any()


def test_a_split_by_time_trains_on_the_past_and_tests_on_the_future():
    times = np.random.default_rng(0).permutation(1000).astype(float)
    cut = time_cuts([times[:300], times[300:]])
    parts = cut.parts(np.arange(1000), times)
    assert np.bincount(parts).tolist() == [800, 100, 100]
    assert times[parts == TRAIN].max() < times[parts == VALID].min()
    assert times[parts == VALID].max() < times[parts == TEST].min()


def test_equal_times_are_never_separated():
    times = np.repeat(np.arange(50.0), 7)
    parts = time_cuts([times]).parts(np.arange(len(times)), times)
    assert all(len(set(parts[times == t])) == 1 for t in range(50))


def test_a_long_stream_is_cut_from_a_sample_of_bounded_size(monkeypatch):
    monkeypatch.setattr(split, "SAMPLE", 5000)
    blocks = (np.arange(i, i + 1000, dtype=float) for i in range(0, 200_000, 1000))
    cut = time_cuts(blocks)
    # A quantile of a sample of 5000 has a standard deviation of 0.0057 of the range at 0.8.
    assert abs(cut.first - 160_000) < 5 * 0.0057 * 200_000
    assert abs(cut.second - 180_000) < 5 * 0.0057 * 200_000


def test_rows_of_one_time_cannot_be_split_by_it():
    with pytest.raises(ArgumentError, match=r"nearly all rows have the same time.*Pass --split random"):
        time_cuts([np.zeros(100)])
    with pytest.raises(ArgumentError, match="without rows"):
        time_cuts([])


def test_a_split_names_its_cuts_in_the_fingerprint():
    assert repr(TimeSplit(1.0, 2.0)) != repr(TimeSplit(1.0, 2.5))
