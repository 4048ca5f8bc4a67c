"""What only the backend of stock torch operations has: pieces, NumPy views, its own Philox, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.backends import eager_counters, eager_sums
from packedbag.backends.eager import BACKEND as EAGER
from packedbag.backends.eager_bits import clear_tail, pack_bits, unpack_bits, unpack_signs
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.core.layout import pack_array, unpack_array
from packedbag.core.philox import halfwords
from tests.backends.arrays import Handed, assert_same
from tests.strategies import DIMS, Bags, Counters, Occurrences, bags, counters, make_words, occurrences


@pytest.fixture(scope="module")
def cut_small() -> Any:
    """The backend with temporaries of at most 300 elements, so that any work is cut into pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager_sums, "ELEMENTS_CPU", 300)
        yield Handed(EAGER)


@given(counts=st.lists(st.integers(0, 9), max_size=12), most=st.integers(1, 10))
def test_pieces_cover_every_entry_once_and_in_order(counts: list[int], most: int) -> None:
    ends = torch.tensor([0, *counts]).cumsum(0)
    groups, entries = [], []
    for first, last, spans in eager_sums.pieces(ends, most):
        groups += range(first, last)
        assert spans[0][0] == ends[first]
        assert spans[-1][1] == ends[last]
        assert len(spans) == 1 or last == first + 1
        for start, end in spans:
            assert 0 <= end - start <= most
            entries += range(start, end)
        assert last - first <= most
    assert groups == list(range(len(counts)))
    assert entries == list(range(sum(counts)))


def test_square_roots_are_correctly_rounded() -> None:
    x = np.random.default_rng(0).random(200_000, np.float32)
    assert_same(eager_sums.root(torch.from_numpy(x)).numpy(), np.sqrt(x))


@given(case=bags())
def test_bags_cut_into_pieces_equal_the_oracle(cut_small: Any, case: Bags) -> None:
    out, expected = case.make_out(), case.make_out()
    arguments = (case.words, case.indices, case.offsets, None, None)
    position = case.call(cut_small, *arguments, out)
    assert position == case.call(ORACLE, *arguments, expected)
    if position < 0:
        assert_same(out, expected)


@given(case=occurrences())
def test_gradients_cut_into_pieces_equal_the_oracle(cut_small: Any, case: Occurrences) -> None:
    dim = case.embedding_dim
    rows, starts, order = ORACLE.merge(case.rows)
    columns = ORACLE.max_columns(case.words, case.rows, case.offsets, embedding_dim=dim)
    assert_same(cut_small.max_columns(case.words, case.rows, case.offsets, embedding_dim=dim), columns)
    factors = {"weights": case.weights, "scale": None, "counts": case.counts, "columns": columns, "factor": 0.7}
    sums = (case.grad, case.bags, order, starts)
    assert_same(cut_small.sum_rows(*sums, **factors), ORACLE.sum_rows(*sums, **factors))
    dot = (case.words, rows, case.grad[:1].repeat(len(rows), axis=0)) if len(case.grad) else None
    if dot:
        assert_same(cut_small.row_dot(*dot, embedding_dim=dim), ORACLE.row_dot(*dot, embedding_dim=dim))


@given(case=counters())
def test_counters_cut_into_pieces_equal_the_oracle(cut_small: Any, case: Counters) -> None:
    states = []
    for backend in (cut_small, ORACLE):
        state = tuple(None if x is None else x.copy() for x in (case.words, case.planes, case.row_state, case.totals))
        case.call(backend, *state, case.rows, case.grad)
        states.append(state)
    assert_same(*states)


def test_a_weighted_bag_in_several_pieces_is_one_bag(cut_small: Any) -> None:
    rng = np.random.default_rng(0)
    words, weights = make_words(rng, 9, 33), rng.standard_normal(1000).astype(np.float32)
    indices, out = rng.integers(0, 9, 1000), np.empty((1, 33), np.float32)
    named = {"embedding_dim": 33, "mode": "sum", "output": "float32", "padding_idx": -1, "bounds": "raise"}
    assert cut_small.bag(words, indices, np.array([0, 1000]), weights, None, out, **named) == -1
    exact = (weights[:, None].astype(np.float64) * np.where(unpack_array(words[indices], 33), 1, -1)).sum(axis=0)
    np.testing.assert_allclose(out[0], exact, rtol=0, atol=1e-6 * np.abs(weights).sum())


@pytest.mark.parametrize("dim", DIMS)
def test_random_numbers_equal_the_core(dim: int) -> None:
    rows = np.array([0, 5, 2**32, 2**32 + 5, 2**40 + 1, 2**62])
    for seed, step, table in ((0, 0, 0), (2**64 - 3, 2**32 - 1, 65535), (0x0123_4567_89AB_CDEF, 77, 4)):
        named = {"seed": seed, "step": step, "table": table}
        drawn = eager_counters.halfwords(torch.from_numpy(rows), dim, **named)
        np.testing.assert_array_equal(drawn, halfwords(rows, dim, **named))


@pytest.mark.parametrize("dim", DIMS)
def test_packed_bits_are_the_layout(dim: int) -> None:
    bits = np.random.default_rng(dim).random((7, dim)) < 0.5
    words = pack_bits(torch.from_numpy(bits))
    np.testing.assert_array_equal(words.numpy().view(np.uint32), pack_array(bits))
    np.testing.assert_array_equal(unpack_bits(words)[:, :dim], bits)
    np.testing.assert_array_equal(unpack_signs(words)[:, :dim], np.where(bits, 1, -1))
    full = torch.full((2, words.shape[1]), -1, dtype=torch.int32)
    np.testing.assert_array_equal(clear_tail(full, dim).numpy().view(np.uint32), pack_array(np.ones((2, dim), bool)))


def test_a_read_only_memory_map_is_read_without_a_warning(tmp_path: Path) -> None:
    words = make_words(np.random.default_rng(0), 20, 64)
    np.save(tmp_path / "words.npy", words)
    mapped = np.load(tmp_path / "words.npy", mmap_mode="r")
    out = np.empty((1, 64), np.int32)
    named = {"embedding_dim": 64, "mode": "sum", "output": "int32", "padding_idx": -1, "bounds": "raise"}
    assert EAGER.bag(mapped, np.array([[3, 4, 4]]), None, None, None, out, **named) == -1
    signs = np.where(unpack_array(words[[3, 4, 4]], 64), 1, -1)
    np.testing.assert_array_equal(out[0], signs.sum(axis=0))


def test_results_take_no_part_in_autograd() -> None:
    words = torch.zeros((2, 1), dtype=torch.int32)
    grad = torch.ones((2, 8), requires_grad=True)
    assert not EAGER.row_dot(words, torch.tensor([0, 1]), grad, embedding_dim=8).requires_grad


MEASURED = """
import re
import torch
from packedbag.backends.eager import BACKEND

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read()).group(1)) // 1024

def prepare(size):
    bags, length, dim = size, 100, 128
    words = torch.randint(-2**31, 2**31 - 1, (1000, 4)).to(torch.int32)
    indices = torch.randint(0, 1000, (bags, length))
    out, grad = torch.empty(bags, dim), torch.randn(bags, dim)
    return words, indices, out, grad, torch.arange(bags).repeat_interleave(length)

from packedbag.backends.counter_rule import CounterRule

def work(words, indices, out, grad, which):
    named = dict(embedding_dim=128, mode="sum", output="float32", padding_idx=-1, bounds="raise")
    BACKEND.bag(words, indices, None, None, None, out, **named)
    BACKEND.bag(words, indices.reshape(-1), torch.tensor([0, 5, indices.numel()]), None, None, out[:2], **named)
    rows, starts, order = BACKEND.merge(indices.reshape(-1))
    factors = dict(weights=None, scale=None, counts=None, columns=None, factor=1.0)
    summed = BACKEND.sum_rows(grad, which, order, starts, **factors)
    BACKEND.weight_gradient(words, indices.reshape(-1), which, grad, embedding_dim=128, row_scale=None, counts=None)
    planes = torch.zeros((1000, 4, 7), dtype=torch.int32)
    rule = dict(bits=8, rate=1.0, adaptivity=None, decay=0.1, threshold=-1.0, spacing=0.0, group=1)
    rule |= dict(seed=0, step=0, table=0)
    totals = torch.zeros(8, dtype=torch.int64)
    BACKEND.counter_update(words, planes, None, totals, rows, summed, rule=CounterRule(embedding_dim=128, **rule))

torch.set_num_threads(1)
work(*prepare(100))
arguments = prepare(5000)
before = peak()
work(*arguments)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_temporaries_do_not_grow_with_the_batch() -> None:
    # 500,000 entries of 128 columns: unpacked at once they would take 256 MB as float32. What grows with the number
    # of entries alone (positions, orders) is 4 MB each.
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 80
