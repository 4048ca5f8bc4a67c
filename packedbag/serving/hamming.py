"""`hamming_topk`: the rows of a table that differ least from each query, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.backends import numpy_hamming, registry
from packedbag.core.errors import ArgumentError, DtypeError, MissingExtraError, ShapeError
from packedbag.core.layout import tail_mask
from packedbag.table import PackedTable

BACKENDS = ("auto", "native", "faiss", "numpy")

Nearest = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


def hamming_topk(table: PackedTable, query_words: npt.NDArray[Any], k: int, *, backend: str = "auto") -> Nearest:
    """Return the ``k`` rows of ``table`` that differ from each query in the fewest of its D columns.

    The dot product of two rows of +-1 is D minus twice their distance: nearest rows are those of the largest product.
    Every row is looked at, nothing is approximated, and all backends give the same answer.

    Args:
        table: (V, D); its scale counts for nothing. A memory map is read from start to end.
        query_words: (Q, W) or one query (W,), uint32, or int32 holding the same bytes: packed as the table is, as by
            `packedbag.pack`; bits beyond D count for nothing.
        k: 0 to V.
        backend: "native", the compiled scan; "faiss", ``IndexBinaryFlat`` of FAISS (extra: search), which copies the
            table first; "numpy"; or "auto", the first of these that is there.

    Returns:
        Distances (Q, k) int32, ascending, and rows (Q, k) int64; of equal distances the lower row comes first. For
        one query (k,) each.

    Raises:
        ArgumentError, DtypeError, ShapeError: an argument is not as above.
        MissingExtraError: "faiss" is not installed; BackendError: "native" cannot run here.

    >>> words = np.array([[0b111], [0b000], [0b100]], np.uint32)
    >>> distances, rows = hamming_topk(PackedTable(words, 3), np.array([0b110], np.uint32), 2)
    >>> distances.tolist(), rows.tolist()
    ([1, 1], [0, 2])
    """
    if not isinstance(table, PackedTable):
        raise ArgumentError("table", f"a {type(table).__name__}", "a PackedTable", "Call to_table() on a module.")
    queries = _check_queries(table, query_words)
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 0 <= k <= table.num_embeddings:
        raise ArgumentError("k", repr(k), f"an integer in 0..{table.num_embeddings}, the rows of the table")
    if backend not in BACKENDS:
        raise ArgumentError("backend", repr(backend), f"one of {', '.join(map(repr, BACKENDS))}")
    if backend == "auto":
        backend = _first()
    search = {"native": _native, "faiss": _faiss, "numpy": _numpy}[backend]
    distances, rows = search(table, queries, int(k))
    return (distances, rows) if np.ndim(query_words) == 2 else (distances[0], rows[0])


def _check_queries(table: PackedTable, query_words: Any) -> npt.NDArray[np.uint32]:
    """Return queries as (Q, W), contiguous, their tail bits 0."""
    if not isinstance(query_words, np.ndarray):
        raise ArgumentError(
            "query_words", f"a {type(query_words).__name__}", "a NumPy array", "Call .numpy() on a tensor."
        )
    if query_words.dtype not in (np.uint32, np.int32):
        advice = "packedbag.pack makes words of signs."
        raise DtypeError("query_words", query_words.dtype, "uint32, or int32 holding the same bytes", advice)
    width = table.words.shape[1]
    if query_words.ndim not in (1, 2) or query_words.shape[-1] != width:
        allowed = f"(Q, {width}) or ({width},) for embedding_dim={table.embedding_dim}"
        raise ShapeError("query_words", query_words.shape, allowed)
    queries = np.array(query_words.reshape(-1, width).view(np.uint32), order="C")
    queries[:, -1] &= tail_mask(table.embedding_dim)
    return queries


def _first() -> str:
    if registry.missing("native_cpu") is None:
        return "native"
    try:
        import faiss  # noqa: F401
    except ImportError:
        return "numpy"
    return "faiss"


def _native(table: PackedTable, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    found: Nearest = registry.get("native_cpu").nearest(  # type: ignore[attr-defined]
        table.words, queries, k, embedding_dim=table.embedding_dim
    )
    return found


def _numpy(table: PackedTable, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    scan = numpy_hamming.NumpyHamming()
    for number in range(len(queries)):
        all_of_them = scan.hamming(table.words, queries[number : number + 1], embedding_dim=table.embedding_dim)[0]
        distances[number], rows[number] = _nearest(all_of_them, k)
    return distances, rows


def _faiss(table: PackedTable, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("Searching through FAISS", "faiss", "search") from None
    words = table.words
    mask = tail_mask(table.embedding_dim)
    index = faiss.IndexBinaryFlat(32 * words.shape[1])
    for start in range(0, len(words), numpy_hamming.WORDS_AT_ONCE):
        part = np.array(words[start : start + numpy_hamming.WORDS_AT_ONCE])
        part[:, -1] &= mask
        index.add(part.view(np.uint8))
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    if not k:
        return distances, rows
    for number in range(len(queries)):
        query = queries[number : number + 1].view(np.uint8)
        # FAISS keeps any of the rows that are as far as the last: look at all of these, and take the lowest.
        farthest = int(index.search(query, k)[0].max())
        _, near, ids = index.range_search(query, farthest + 1)
        order = np.lexsort((ids, near))[:k]
        distances[number], rows[number] = near[order], ids[order]
    return distances, rows


def _nearest(distances: npt.NDArray[np.int32], k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the ``k`` smallest of (V,) distances and where they are, of equal ones the first."""
    if not k:
        return distances[:0], np.empty(0, np.int64)
    farthest = np.partition(distances, k - 1)[k - 1]
    near = np.flatnonzero(distances < farthest)
    rows = np.concatenate([near, np.flatnonzero(distances == farthest)[: k - len(near)]])
    order = np.lexsort((rows, distances[rows]))
    return distances[rows][order], rows[order]
