"""`packedbag.recsys.ids`."""

import os
import subprocess
import sys

import numpy as np
import pytest

from packedbag.core.errors import ArgumentError
from packedbag.recsys.ids import HashedIds, MappedIds, hashed


def learnt(tokens, **kwargs):
    ids = MappedIds(**{"unseen_rows": 4, "min_count": 1, **kwargs})
    ids.learn(tokens)
    ids.finish()
    return ids


def test_ids_are_numbered_in_the_order_in_which_they_were_seen():
    ids = learnt(["x", "b", "x", "a"])
    assert ids.encode(["x", "b", "a"]).tolist() == [0, 1, 2]
    assert ids.tokens() == ["x", "b", "a"]
    assert ids.rows == 7


def test_unseen_ids_fall_into_the_fixed_rows_at_the_end_and_into_all_of_them():
    ids = learnt(["a", "b"])
    rows = ids.encode([f"new{i}" for i in range(200)])
    assert set(rows.tolist()) == {2, 3, 4, 5}


def test_rare_ids_share_the_rows_of_unseen_ones():
    ids = learnt(["a", "a", "rare"], min_count=2)
    assert ids.rows == 1 + 4
    assert ids.encode(["a", "rare"]).tolist() == [0, 1 + hashed("rare", 4)]


def test_a_hash_is_the_same_in_another_process():
    code = "from packedbag.recsys.ids import hashed; print([hashed(t, 10**6) for t in ('', 'a', 'ä', '242')])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    )
    assert found.stdout.strip() == str([hashed(t, 10**6) for t in ("", "a", "ä", "242")])


def test_hashes_of_consecutive_numbers_fill_the_rows_evenly():
    counts = np.bincount([hashed(str(i), 64) for i in range(64 * 200)], minlength=64)
    # Binomial: mean 200, standard deviation 14; five of them either way.
    assert counts.min() > 130
    assert counts.max() < 270


def test_hashed_ids_need_no_learning_and_have_the_rows_asked_for():
    ids = HashedIds(100)
    assert not ids.needs_learning
    assert ids.rows == 100
    assert ids.encode(["u1"]).tolist() == [hashed("u1", 100)]


def test_the_fingerprint_changes_with_any_row():
    base = learnt(["a", "b"]).fingerprint()
    assert base == learnt(["a", "b"]).fingerprint()
    assert base != learnt(["b", "a"]).fingerprint()
    assert base != learnt(["a", "b"], unseen_rows=5).fingerprint()
    assert HashedIds(10).fingerprint() != HashedIds(11).fingerprint()


def test_wrong_sizes_are_refused():
    with pytest.raises(ArgumentError, match=r"unseen_rows is 0; it must be at least 1\. Ids never seen need a row."):
        MappedIds(unseen_rows=0, min_count=1)
    with pytest.raises(ArgumentError, match="unseen_rows is 4294967297; it must be at most 4294967296"):
        MappedIds(unseen_rows=2**32 + 1, min_count=1)
    with pytest.raises(ArgumentError, match="min_count is 0; it must be at least 1"):
        MappedIds(unseen_rows=1, min_count=0)
    with pytest.raises(ArgumentError, match=r"hash_rows is 0; it must be in 1..4294967296"):
        HashedIds(0)
