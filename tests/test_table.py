"""PackedTable: bags and rows in NumPy, without torch."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import packedbag
from packedbag import PackedTable, functional, pack
from packedbag.core.value_codes import BINARY_GROUPS, values_of

V, D = 25, 45
RNG = np.random.default_rng(0)
WORDS = pack(RNG.random((V, D)) > 0.5)
SIGNS = np.where(packedbag.unpack(WORDS, D), 1.0, -1.0).astype(np.float32)


@given(
    mode=st.sampled_from(["sum", "mean", "majority", "max"]),
    dtype=st.sampled_from([np.float32, np.float16]),
    padding_idx=st.sampled_from([None, 3, -1]),
    scale=st.sampled_from([None, 0.3]),
    ragged=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_bags_equal_the_functional_ones(mode, dtype, padding_idx, scale, ragged, seed):
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, V, 24)
    offsets = np.sort(rng.integers(0, 25, 5)) if ragged else None
    if ragged:
        offsets[0] = 0
    else:
        indices = indices.reshape(4, 6)
    table = PackedTable(WORDS, D, scale=scale)
    ours = table.bag(indices, offsets, mode, padding_idx=padding_idx, output_dtype=dtype)
    theirs = functional.embedding_bag(
        torch.from_numpy(indices),
        torch.from_numpy(WORDS),
        None if offsets is None else torch.from_numpy(offsets),
        embedding_dim=D,
        mode=mode,
        padding_idx=padding_idx,
        scale=None if scale is None else torch.tensor(scale),
        output_dtype=getattr(torch, np.dtype(dtype).name),
    )
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs.numpy())


def weighed(signs, bits):
    """Return the values of binary numbers in float64, (..., D) -> (..., D / bits)."""
    weights = 2.0 ** np.arange(bits)
    return signs.reshape(*signs.shape[:-1], signs.shape[-1] // bits, bits).astype(np.float64) @ weights / weights.sum()


@given(
    mode=st.sampled_from(["sum", "mean"]),
    bits=st.sampled_from(BINARY_GROUPS),
    dtype=st.sampled_from([np.float32, np.float16]),
    scale=st.sampled_from([None, 0.3, -1e-3]),
    weighted=st.booleans(),
    lengths=st.lists(st.integers(0, 6), max_size=5),
    seed=st.integers(0, 1000),
)
def test_binary_values_are_bags_of_weighed_bits(mode, bits, dtype, scale, weighted, lengths, seed):
    rng = np.random.default_rng(seed)
    words = pack(rng.random((V, 64)) > 0.5)
    indices, offsets = rng.integers(0, V, sum(lengths)), np.cumsum([0, *lengths])[:-1]
    weights = rng.standard_normal(indices.size).astype(np.float32) if weighted else None
    table = PackedTable(words, 64, scale, bits_per_value=bits, code="binary")
    ours = table.bag(indices, offsets, mode, per_sample_weights=weights, output_dtype=dtype)
    columns = functional.embedding_bag(
        torch.from_numpy(indices),
        torch.from_numpy(words),
        torch.from_numpy(offsets),
        embedding_dim=64,
        mode=mode,
        per_sample_weights=None if weights is None else torch.from_numpy(weights),
        scale=None if scale is None else torch.tensor(scale),
    )
    theirs = values_of(columns, bits, "binary").to(getattr(torch, np.dtype(dtype).name))
    assert ours.shape == (len(lengths), 64 // bits)
    np.testing.assert_array_equal(ours, theirs.numpy())
    values = weighed(np.where(packedbag.unpack(words, 64), 1.0, -1.0), bits)[indices] * (scale or 1)
    values = values if weights is None else values * weights[:, None]
    expected = np.stack([values[a : a + n].sum(0) for a, n in zip(offsets, lengths, strict=True)]) if lengths else ours
    expected = expected / np.maximum(lengths, 1)[:, None] if mode == "mean" and lengths else expected
    largest = 6 * (1 if weights is None else abs(weights).max(initial=1))
    error = largest * np.finfo(dtype).eps * 4
    np.testing.assert_allclose(ours, expected, rtol=0, atol=error)


@pytest.mark.parametrize("bits", BINARY_GROUPS)
def test_rows_of_binary_values(bits):
    signs = RNG.choice([-1.0, 1.0], (V, 64))
    signs[3] = 1.0
    table = PackedTable(pack(signs), 64, bits_per_value=bits, code="binary")
    found = table.rows(np.arange(V).reshape(5, 5))
    np.testing.assert_allclose(found, weighed(signs, bits).reshape(5, 5, -1), rtol=0, atol=1e-7)
    assert (table.rows([3]) == 1).all()
    assert (table.rows(np.array([V]), bounds="skip") == 0).all()


def test_a_copy_of_a_table_has_its_code():
    table = PackedTable(WORDS, 44, 0.5, bits_per_value=4, code="binary")
    expected = table.bag([[1, 2]])
    for each in (copy.copy(table), copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert repr(each) == "PackedTable(25, 44, scale='table', bits_per_value=4, code='binary', 200 bytes)"
        np.testing.assert_array_equal(each.bag([[1, 2]]), expected)


def test_weights_row_scales_integers_and_packed_bits():
    indices = np.array([[0, 1], [2, 2]])
    weights = np.array([[0.5, 2.0], [1.0, -1.0]])
    scale = RNG.random(V).astype(np.float32)
    out = PackedTable(WORDS, D, scale=scale).bag(indices, per_sample_weights=weights)
    expected = np.einsum("bld,bl->bd", (SIGNS * scale[:, None])[indices], weights)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    table = PackedTable(WORDS, D)
    np.testing.assert_array_equal(table.bag(indices, output_dtype=np.int32), SIGNS[indices].sum(1))
    bits = table.bag(indices, mode="majority", output_dtype=np.uint32)
    np.testing.assert_array_equal(packedbag.unpack(bits, D), SIGNS[indices].sum(1) >= 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_rows_of_any_shape(shape):
    indices = RNG.integers(0, V, shape)
    np.testing.assert_array_equal(PackedTable(WORDS, D).rows(indices), SIGNS[indices])
    zeros = PackedTable(WORDS, D).rows(np.array([4, V]), padding_idx=4, bounds="skip")
    np.testing.assert_array_equal(zeros, np.zeros((2, D)))


def test_lists_of_integers_are_indices():
    np.testing.assert_array_equal(PackedTable(WORDS, D).bag([[1, 2]]), SIGNS[[1, 2]].sum(0)[None])


def test_words_are_kept_as_they_are_memory_maps_too(tmp_path):
    np.save(tmp_path / "words.npy", WORDS)
    mapped = np.load(tmp_path / "words.npy", mmap_mode="r")
    table = PackedTable(mapped, D, metadata={"name": "item"})
    assert np.shares_memory(table.words, mapped)
    assert (table.nbytes, len(table), table.metadata) == (WORDS.nbytes, V, {"name": "item"})
    assert repr(table) == "PackedTable(25, 45, 200 bytes)"
    np.testing.assert_array_equal(table.rows([1]), SIGNS[[1]])


def binary(bits_per_value=4, code="binary", scale=None):
    return PackedTable(np.zeros((V, 2), np.uint32), 64, scale, bits_per_value=bits_per_value, code=code)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary(code="gray"), r"code is 'gray'; it must be 'thermometer' or 'binary'\."),
        (lambda: binary(bits_per_value=16), r"bits_per_value is 16; it must be 2, 4 or 8 with code='binary'\."),
        (lambda: binary(bits_per_value=1), r"bits_per_value is 1; it must be 2, 4 or 8 with code='binary'\."),
        (
            lambda: binary(scale=np.ones(V)),
            r"scale is one value a row with code='binary'; it must be None or one value",
        ),
        (lambda: binary().bag([[1]], mode="max"), r"mode is 'max'; it must be 'sum' or 'mean' with bits_per_value=4\."),
        (lambda: binary().bag([[1]], output_dtype=np.int32), r"output_dtype is int32; it must be floating point"),
        (lambda: PackedTable(WORDS, 100), r"words has shape \(25, 2\); it must be \(V, 4\) for embedding_dim=100\."),
        (lambda: PackedTable(WORDS.astype(np.int64), D), r"words has dtype int64; it must be uint32"),
        (lambda: PackedTable(WORDS, D, scale=np.ones(3)), r"scale has shape \(3\); it must be one value, or \(25,\)"),
        (lambda: PackedTable(WORDS, D, scale="big"), r"scale has dtype <U3; it must be floating point\."),
        (lambda: PackedTable(WORDS, D).bag([[25]]), r"indices\[0\] is 25; the table has rows 0\.\.24\."),
        (lambda: PackedTable(WORDS, D).bag([1.5]), r"indices has dtype float64; it must be int32 or int64\."),
        (lambda: PackedTable(WORDS, D).bag([1, 2], [1]), r"offsets\[0\] is 1; it must be 0\."),
        (lambda: PackedTable(WORDS, D).bag([[1]], bounds="no"), r"bounds is 'no'; it must be one of"),
        (lambda: PackedTable(WORDS, D).bag([[1]], output_dtype="f8"), r"output_dtype is float64; it must be one of"),
        (lambda: PackedTable(WORDS, D).rows([1], output_dtype="i4"), r"output_dtype is int32; it must be float32 or"),
        (lambda: PackedTable(WORDS, D).rows([1.0]), r"indices has dtype float64; it must be int32 or int64\."),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(call, message):
    with pytest.raises(packedbag.PackedBagError, match=message):
        call()


def test_serving_needs_no_torch():
    code = (
        "import sys, numpy as np, packedbag\n"
        "table = packedbag.PackedTable(packedbag.pack(np.ones((4, 33))), 33, scale=0.5)\n"
        "assert table.bag([[0, 1]], mode='mean').tolist() == [[0.5] * 33]\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PACKEDBAG_BACKEND"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(("mode", "dtype"), [("sum", ">f4"), ("sum", ">f2"), ("sum", ">i4"), ("max", ">u4")])
def test_an_output_dtype_of_the_other_byte_order_gives_the_same_values(mode, dtype):
    table, native = PackedTable(WORDS, D), np.dtype(dtype).newbyteorder("=")
    indices = np.array([[0, 1], [2, 3]])
    assert np.array_equal(
        table.bag(indices, mode=mode, output_dtype=dtype), table.bag(indices, mode=mode, output_dtype=native)
    )


@pytest.mark.parametrize("words", [WORDS.tolist(), torch.from_numpy(WORDS)])
def test_words_that_are_no_array_are_refused(words):
    with pytest.raises(packedbag.PackedBagError, match=r"words is a (list|Tensor); it must be a NumPy array"):
        PackedTable(words, D)
