"""`packedbag.core.footprint`: bytes of parts of tables, and of what their batches send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag.core.footprint import (
    SHARDINGS,
    STATISTICS,
    column_parts,
    count_bits,
    distinct_rows,
    footprint,
    index_bytes,
    largest_part,
    line_bytes,
    traffic,
)
from packedbag.core.layout import words_per_row


@pytest.mark.parametrize(("dim", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3), (257, 9)])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_row_takes_its_words_once_for_each_bit_and_a_word(dim, words, bits):
    taken = footprint(10, dim, bits)
    assert (taken.table, taken.planes, taken.row_state) == (40 * words, 40 * words * (bits - 1), 40)
    assert taken.total == 40 * words * bits + 40
    assert footprint(10, dim, bits, row_state=False).total == 40 * words * bits


def test_what_serves_is_words_alone():
    assert footprint(10, 100).total == footprint(10, 100, 1, row_state=False).total == 160


@pytest.mark.parametrize(("most", "size"), [(2**31 - 1, 4), (2**31, 8)])
def test_indices_are_int64_from_2_to_the_31_rows(most, size):
    assert index_bytes(most) == size


@given(longest=st.integers(0, 2**20))
def test_counts_fit_their_bits_and_not_the_next_fewer(longest):
    bits = count_bits(longest)
    assert bits == 32 or longest < 1 << bits
    assert bits == 1 or longest >= 1 << bits // 2


@given(columns=st.integers(1, 1000), bits=st.sampled_from((1, 2, 4, 8, 16, 32)))
def test_a_line_has_no_more_padding_than_an_element(columns, bits):
    element = 1 if bits <= 8 else 4
    assert 0 <= line_bytes(columns, bits) - columns * bits / 8 < element


@given(
    dim=st.integers(1, 3000),
    ranks=st.integers(1, 64),
    least=st.integers(1, 300),
    multiple=st.sampled_from((32, 64)),
)
def test_parts_of_columns_are_whole_words_at_most_one_a_rank(dim, ranks, least, multiple):
    parts = column_parts(dim, ranks, least, multiple)
    assert sum(parts) == dim
    assert len(parts) <= ranks
    assert all(part % multiple == 0 and part >= least for part in parts[:-1])
    assert sum(map(words_per_row, parts)) == words_per_row(dim)


@given(rows=st.integers(1, 10**6), dim=st.integers(1, 500), ranks=st.integers(1, 64))
def test_the_largest_parts_hold_the_table_together(rows, dim, ranks):
    for sharding in SHARDINGS:
        part_rows, part_dim = largest_part(rows, dim, ranks, sharding)
        assert part_rows <= rows
        assert part_dim <= dim
        assert part_rows * part_dim * ranks >= rows * dim or sharding == "table"
    assert largest_part(rows, dim, ranks, "table") == (rows, dim)


def test_what_passes_is_ids_and_lengths_then_bags_then_gradients():
    passed = traffic(columns=100, bags=10, entries=35, index=4, bits=4)
    assert (passed.indices, passed.forward, passed.gradients, passed.statistics) == (35 * 4 + 40, 500, 4000, 0)
    assert passed.total == 180 + 500 + 4000


def test_sequences_send_a_row_for_each_id():
    passed = traffic(columns=100, bags=10, entries=35, index=4, bits=1, pooled=False)
    assert (passed.indices, passed.forward, passed.gradients) == (180, 35 * 13, 35 * 400)


def test_rows_whose_columns_are_shared_cost_32_sums_and_a_mean():
    assert (
        traffic(columns=32, bags=1, entries=1, index=4, bits=1, shared_gradients=7).statistics == 7 * STATISTICS == 924
    )


@given(rows=st.integers(0, 1000), entries=st.floats(0, 1000))
def test_distinct_rows_are_at_most_the_rows(rows, entries):
    assert 0 <= distinct_rows(rows, entries) <= rows
