"""`packedbag.recsys.rows`."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packedbag.recsys.rows import Column, Rows, join

BAGS = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12)


def column(bags, weighted=False):
    flat = [i for bag in bags for i in bag]
    offsets = np.cumsum([0, *map(len, bags)])
    weights = np.array(flat, np.float32) / 2 if weighted else None
    return Column(np.array(flat, np.int64), offsets.astype(np.int64), weights)


def bags_of(column):
    return [column.indices[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]


@given(bags=BAGS, data=st.data())
def test_taking_rows_takes_their_bags_and_weights(bags, data):
    chosen = data.draw(st.lists(st.integers(0, len(bags) - 1), max_size=15))
    taken = column(bags, weighted=True).take(np.array(chosen, np.int64))
    assert bags_of(taken) == [bags[i] for i in chosen]
    np.testing.assert_array_equal(taken.weights, taken.indices.astype(np.float32) / 2)


@given(blocks=st.lists(BAGS, min_size=1, max_size=4))
def test_joining_puts_rows_one_after_another(blocks):
    rows = [Rows(np.arange(len(bags), dtype=np.float32), (column(bags), column(bags, True))) for bags in blocks]
    joined = join(rows)
    expected = [bag for bags in blocks for bag in bags]
    assert [bags_of(c) for c in joined.columns] == [expected, expected]
    assert joined.columns[0].weights is None
    np.testing.assert_array_equal(joined.columns[1].weights, joined.columns[1].indices.astype(np.float32) / 2)
    assert len(joined) == len(expected)
