"""`packedbag.recsys.dataset`."""

import numpy as np
import pytest

from packedbag.core.errors import ArgumentError
from packedbag.recsys.dataset import Dataset, Order
from packedbag.recsys.split import TEST, TRAIN, VALID
from tests.recsys.memory_source import MemorySource


def prepared(source=None, split="random", **kwargs):
    dataset = Dataset(source or MemorySource(), split, **{"window_rows": 150, **kwargs})
    dataset.prepare()
    return dataset


def keys(batch):
    """What tells rows apart: label, user, item, tags."""
    return [
        (float(batch.labels[i]), *(tuple(c.indices[c.offsets[i] : c.offsets[i + 1]].tolist()) for c in batch.columns))
        for i in range(len(batch))
    ]


def all_keys(batches):
    return [key for batch in batches for key in keys(batch)]


def test_the_parts_together_hold_every_row_once():
    dataset = prepared()
    parts = [all_keys(dataset.batches(part, 64)) for part in (TRAIN, VALID, TEST)]
    assert tuple(map(len, parts)) == dataset.counts
    assert sum(dataset.counts) == 600
    whole = Dataset(MemorySource(), split=_Everything(), window_rows=10**6)
    whole.ids = dataset.ids
    assert sorted(k for part in parts for k in part) == sorted(all_keys(whole.batches(TRAIN, 64)))


class _Everything:
    def parts(self, rows, times):
        return np.zeros(len(rows), np.uint8)


def test_an_epoch_is_a_permutation_and_each_epoch_another():
    dataset = prepared()
    plain = all_keys(dataset.batches(TRAIN, 64))
    first = all_keys(dataset.batches(TRAIN, 64, order=Order(0, 0)))
    again = all_keys(dataset.batches(TRAIN, 64, order=Order(0, 0)))
    second = all_keys(dataset.batches(TRAIN, 64, order=Order(0, 1)))
    other_seed = all_keys(dataset.batches(TRAIN, 64, order=Order(1, 0)))
    assert first == again
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(first), tuple(second), tuple(other_seed), tuple(plain)}) == 4


@pytest.mark.parametrize("in_memory", [False, True])
def test_skipping_batches_continues_exactly_where_they_end(in_memory):
    dataset = prepared(MemorySource(in_memory=in_memory))
    whole = list(dataset.batches(TRAIN, 64, order=Order(0, 3)))
    for skip in range(len(whole) + 1):
        rest = list(dataset.batches(TRAIN, 64, order=Order(0, 3), skip=skip))
        assert [keys(b) for b in rest] == [keys(b) for b in whole[skip:]]


def test_batches_of_a_window_differ_by_one_row_at_most():
    sizes = [len(b) for b in prepared(window_rows=10**6).batches(TRAIN, 64, order=Order(0, 0))]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 96


def test_only_training_rows_are_learnt():
    source = MemorySource()
    source.user = np.arange(600)  # each row has a user of its own
    dataset = prepared(source, min_count=1)
    users = dataset.ids[0]
    assert users.rows == dataset.counts[TRAIN] + 16
    rows = np.concatenate([b.columns[0].indices for b in dataset.batches(TEST, 64)])
    assert (rows >= dataset.counts[TRAIN]).all()


def test_hashed_ids_with_a_random_split_read_nothing_ahead():
    source = MemorySource()
    dataset = prepared(source, hash_rows=50)
    assert source.yielded == 0
    assert dataset.counts is None
    assert [ids.rows for ids in dataset.ids] == [50, 50, 50]
    assert len(all_keys(dataset.batches(TRAIN, 64))) > 400


def test_a_source_is_read_only_as_far_as_needed():
    source = MemorySource(rows=2000, chunk=100)
    dataset = prepared(source, hash_rows=50)
    next(dataset.batches(TRAIN, 64))
    assert source.yielded <= 3  # 150 rows of the training part are in the first two or three chunks


def test_a_source_in_memory_is_encoded_once():
    source = MemorySource(in_memory=True)
    dataset = prepared(source)
    before = source.yielded
    first = all_keys(dataset.batches(TRAIN, 64))
    assert all_keys(dataset.batches(TRAIN, 64)) == first
    assert source.yielded == before + 6


def test_without_a_clock_a_split_by_time_goes_by_position():
    source = MemorySource()
    dataset = prepared(source, split="time")
    assert dataset.counts == (480, 60, 60)
    labels = np.concatenate([b.labels for b in dataset.batches(TEST, 64)])
    np.testing.assert_array_equal(labels, source.labels[-60:])


def test_the_fingerprint_follows_data_split_and_ids():
    base = prepared().fingerprint()
    assert base == prepared().fingerprint()
    others = [
        prepared(seed=1),
        prepared(split="time"),
        prepared(unseen_rows=17),
        prepared(hash_rows=9),
        prepared(window_rows=200),
        prepared(MemorySource(seed=9)),
    ]
    assert base not in {d.fingerprint() for d in others}


def test_too_few_rows_to_split_are_refused():
    with pytest.raises(ArgumentError, match=r"one without (valid|test) rows \(2 rows in all\)"):
        prepared(MemorySource(rows=2))


def test_an_unknown_split_is_refused():
    with pytest.raises(ArgumentError, match="split is 'user'; it must be 'random' or 'time'"):
        prepared(split="user")
