"""`packedbag.io.statistics`: what counting in NumPy counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedbag import PackedTable
from packedbag.core.layout import unpack_array
from packedbag.io import statistics
from packedbag.report import memory


@given(data=st.data())
def test_counts_are_those_of_the_unpacked_table(data: st.DataObject) -> None:
    dim, rows = data.draw(st.sampled_from([1, 31, 32, 33, 100, 128, 257])), data.draw(st.integers(0, 200))
    kinds = data.draw(st.sampled_from([1, 2, 2**32]))
    words = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, kinds, (rows, -(-dim // 32)), np.uint32)
    table = PackedTable(words, dim, np.float32(3), {"mode": "majority", "padding_idx": 0 if rows else None})
    found = statistics.measure(table)
    bits = unpack_array(words, dim)
    np.testing.assert_array_equal(found.ones, bits.sum(0))
    minus, plus = found.dead_columns()
    assert minus == (np.flatnonzero(~bits.any(0)).tolist() if rows else [])
    assert plus == (np.flatnonzero(bits.all(0)).tolist() if rows else [])
    assert found.duplicates == rows - len(np.unique(bits, axis=0))
    assert not found.is_estimated
    if rows:
        assert found.density == pytest.approx(bits.mean())


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 40, (1000, 2), np.uint32)
    whole = statistics.measure(PackedTable(words, 40))
    monkeypatch.setattr(statistics, "PIECE_WORDS", 14)
    parts = statistics.measure(PackedTable(words, 40))
    np.testing.assert_array_equal(parts.ones, whole.ones)
    assert parts.duplicates == whole.duplicates > 0


def test_of_a_large_table_a_part_of_the_rows_tells_how_many_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 2**32, (40_000, 4), np.uint32)
    words[30_000:] = words[:10_000]
    monkeypatch.setattr(statistics, "MOST_HASHES", 5000)
    found = statistics.measure(PackedTable(words, 128))
    assert found.is_estimated
    assert found.duplicates == pytest.approx(10_000, rel=0.1)


def test_memory_is_that_of_pieces_and_hashes() -> None:
    table = PackedTable(np.full((1 << 22, 8), 7, np.uint32), 256)  # 128 MB
    if not memory.reset_peak():
        pytest.skip("no /proc/self/clear_refs")
    before = memory.resident_bytes()
    assert statistics.measure(table).duplicates == (1 << 22) - 1
    assert memory.peak_bytes() - before < 8 * len(table) * 2 + (80 << 20)
