"""`hamming_topk`: every backend gives the rows that sorting all distances gives."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packedbag import PackedTable, pack
from packedbag.backends import missing, native_cpu, native_hamming, reference
from packedbag.backends.nearest_rows import BACKENDS
from packedbag.core.errors import ArgumentError, DtypeError, MissingExtraError, ShapeError
from packedbag.serving import hamming_topk
from tests.backends.placed_memory import GuardedPages, misalign

ORACLE = reference.BACKEND


def words_of(rows: int, dim: int, seed: int = 0, kinds: int = 2**32) -> np.ndarray:
    """Return random words, tail bits included; few ``kinds`` make many ties."""
    return np.random.default_rng(seed).integers(0, kinds, (rows, -(-dim // 32)), np.uint32)


def sorted_distances(words: Any, queries: Any, k: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    distances = ORACLE.hamming(words, queries, embedding_dim=dim)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, rows, 1), rows


def skip_unless_there(backend: str) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    if backend == "native" and missing("native_cpu"):
        pytest.skip(str(missing("native_cpu")))


every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_isa = pytest.mark.parametrize("isa", [] if missing("native_cpu") else native_cpu.isas())


@every_backend
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_backend_gives_what_sorting_gives(backend: str, data: st.DataObject) -> None:
    skip_unless_there(backend)
    dim = data.draw(st.sampled_from([1, 31, 32, 33, 64, 100, 128, 257, 512, 1000]))
    rows = data.draw(st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 300]))
    kinds = data.draw(st.sampled_from([1, 2, 2**32]))
    words = words_of(rows, dim, data.draw(st.integers(0, 9)), kinds)
    queries = words_of(data.draw(st.integers(0, 4)), dim, 99, kinds)
    k = data.draw(st.one_of(st.integers(0, rows), st.just(rows)))
    distances, found = hamming_topk(PackedTable(words, dim), queries, k, backend=backend)
    expected = sorted_distances(words, queries, k, dim)
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(found, expected[1])
    assert (distances.dtype, found.dtype) == (np.int32, np.int64)


@every_isa
@pytest.mark.parametrize("dim", [1, 32, 33, 64, 96, 100, 128, 160, 256, 257, 512, 513, 1000, 5000])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 1025])
def test_native_scans_of_each_instruction_set_end_where_the_table_does(isa: str, dim: int, rows: int) -> None:
    backend = native_cpu.NativeCpu(isa)
    pages = GuardedPages()
    for place in (pages.place, misalign):
        words, queries = place(words_of(rows, dim)), place(words_of(3, dim, 1))
        for k in {1, min(rows, 10), rows}:
            distances, found = backend.nearest(words, queries, k, embedding_dim=dim)
            expected = sorted_distances(words, queries, k, dim)
            np.testing.assert_array_equal(distances, expected[0])
            np.testing.assert_array_equal(found, expected[1])
        np.testing.assert_array_equal(
            backend.hamming(words, queries, embedding_dim=dim), ORACLE.hamming(words, queries, embedding_dim=dim)
        )


@every_isa
@pytest.mark.parametrize("kinds", [2, 2**32])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_native_scans_do_not_depend_on_the_number_of_threads(isa: str, kinds: int, threads: int) -> None:
    words, queries = words_of(120_000, 64, kinds=kinds), words_of(3, 64, 1, kinds)
    before = native_cpu.threads()
    try:
        native_cpu.set_threads(threads)
        found = native_cpu.NativeCpu(isa).nearest(words, queries, 100, embedding_dim=64)
    finally:
        native_cpu.set_threads(before)
    expected = sorted_distances(words, queries, 100, 64)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@every_isa
def test_queries_that_have_no_room_at_once_take_several_passes(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_hamming, "CANDIDATE_BYTES", 8 * 50 * 3 * native_cpu.threads())
    words, queries = words_of(400, 100), words_of(8, 100, 1)
    found = native_cpu.NativeCpu(isa).nearest(words, queries, 50, embedding_dim=100)
    expected = sorted_distances(words, queries, 50, 100)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@every_backend
def test_one_query_gives_one_dimension(backend: str) -> None:
    skip_unless_there(backend)
    table = PackedTable(words_of(50, 40), 40)
    one, all_of_them = hamming_topk(table, table.words[7], 3, backend=backend), hamming_topk(table, table.words[7:8], 3)
    assert one[0].shape == one[1].shape == (3,)
    np.testing.assert_array_equal(one[0], all_of_them[0][0])
    assert (one[0][0], one[1][0]) == (0, 7)


def test_nearest_rows_are_those_of_the_largest_dot_product() -> None:
    signs = np.where(np.random.default_rng(0).random((500, 100)) < 0.5, 1.0, -1.0)
    distances, rows = hamming_topk(PackedTable(pack(signs), 100), pack(signs[:4]), 20)
    products = signs[:4] @ signs.T
    np.testing.assert_array_equal(100 - 2 * distances, np.take_along_axis(products, rows, 1))
    np.testing.assert_array_equal(100 - 2 * distances, -np.sort(-products, axis=1)[:, :20])


def test_words_of_other_strides_and_signed_words_are_taken() -> None:
    words = words_of(60, 64)
    table = PackedTable(words, 64)
    expected = hamming_topk(table, words[::2][:3].copy(), 5)
    for queries in (words[::2][:3], words[::2][:3].view(np.int32), np.asfortranarray(words[:6:2])):
        for found, wanted in zip(hamming_topk(table, queries, 5), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"table": np.zeros((3, 2), np.uint32)}, ArgumentError, "table is a ndarray; it must be a PackedTable"),
        ({"query_words": [[1, 2]]}, ArgumentError, "query_words is a list; it must be a NumPy array"),
        (
            {"query_words": np.zeros((1, 2))},
            DtypeError,
            r"query_words has dtype float64; .* packedbag\.pack makes words",
        ),
        (
            {"query_words": np.zeros((1, 3), np.uint32)},
            ShapeError,
            r"has shape \(1, 3\); it must be \(Q, 2\) or \(2,\)",
        ),
        ({"query_words": np.zeros((1, 1, 2), np.uint32)}, ShapeError, r"query_words has shape \(1, 1, 2\)"),
        ({"query_words": np.uint32(5)[()]}, ArgumentError, "query_words is a uint32"),
        ({"k": 6}, ArgumentError, r"k is 6; it must be an integer in 0\.\.5, the rows of the table"),
        ({"k": -1}, ArgumentError, "k is -1"),
        ({"k": 2.0}, ArgumentError, r"k is 2\.0"),
        ({"k": True}, ArgumentError, "k is True"),
        ({"backend": "scann"}, ArgumentError, "backend is 'scann'; it must be one of 'auto', 'native', 'faiss'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(change: dict[str, Any], error: type, message: str) -> None:
    arguments = {"table": PackedTable(words_of(5, 64), 64), "query_words": words_of(1, 64), "k": 1, **change}
    with pytest.raises(error, match=message):
        hamming_topk(**arguments)


def test_faiss_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"Searching through FAISS needs faiss.*packedbag\[search\]"):
        hamming_topk(PackedTable(words_of(5, 64), 64), words_of(1, 64), 1, backend="faiss")


def test_serving_imports_neither_torch_nor_faiss() -> None:
    script = (
        "import sys, numpy; from packedbag import PackedTable; from packedbag.serving import hamming_topk\n"
        "table = PackedTable(numpy.arange(40, dtype=numpy.uint32).reshape(20, 2), 64)\n"
        "assert hamming_topk(table, table.words[3], 1)[1].tolist() == [3]\n"
        "assert not {'torch', 'faiss'} & set(sys.modules), 'heavy'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
