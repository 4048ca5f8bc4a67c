"""`nearest_rows`: the rows of a table that differ least from each query, exactly, by whichever way is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.backends import numpy_hamming, registry
from packedbag.core.errors import ArgumentError, DtypeError, MissingExtraError, ShapeError
from packedbag.core.layout import tail_mask

BACKENDS = ("auto", "native", "faiss", "numpy")

Nearest = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


def nearest_rows(
    words: npt.NDArray[Any], query_words: npt.NDArray[Any], k: int, *, embedding_dim: int, backend: str = "auto"
) -> Nearest:
    """Return the ``k`` rows of ``words`` (V, W) that differ from each query in the fewest columns.

    Arguments, results and errors are those of `packedbag.PackedTable.hamming_topk`.
    """
    queries = _check_queries(words, query_words, embedding_dim)
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 0 <= k <= len(words):
        raise ArgumentError("k", repr(k), f"an integer in 0..{len(words)}, the rows of the table")
    if backend not in BACKENDS:
        raise ArgumentError("backend", repr(backend), f"one of {', '.join(map(repr, BACKENDS))}")
    if backend == "auto":
        backend = _first()
    search = {"native": _native, "faiss": _faiss, "numpy": _numpy}[backend]
    distances, rows = search(words, embedding_dim, queries, int(k))
    return (distances, rows) if np.ndim(query_words) == 2 else (distances[0], rows[0])


def _check_queries(words: npt.NDArray[Any], query_words: Any, embedding_dim: int) -> npt.NDArray[np.uint32]:
    """Return queries as (Q, W), contiguous, their tail bits 0."""
    if not isinstance(query_words, np.ndarray):
        raise ArgumentError(
            "query_words", f"a {type(query_words).__name__}", "a NumPy array", "Call .numpy() on a tensor."
        )
    if query_words.dtype not in (np.uint32, np.int32):
        advice = "packedbag.pack makes words of signs."
        raise DtypeError("query_words", query_words.dtype, "uint32, or int32 holding the same bytes", advice)
    width = words.shape[1]
    if query_words.ndim not in (1, 2) or query_words.shape[-1] != width:
        allowed = f"(Q, {width}) or ({width},) for embedding_dim={embedding_dim}"
        raise ShapeError("query_words", query_words.shape, allowed)
    queries = np.array(query_words.reshape(-1, width).view(np.uint32), order="C")
    queries[:, -1] &= tail_mask(embedding_dim)
    return queries


def _first() -> str:
    if registry.missing("native_cpu") is None:
        return "native"
    try:
        import faiss  # noqa: F401
    except ImportError:
        return "numpy"
    return "faiss"


def _native(words: npt.NDArray[Any], embedding_dim: int, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    found: Nearest = registry.get("native_cpu").nearest(  # type: ignore[attr-defined]
        words, queries, k, embedding_dim=embedding_dim
    )
    return found


def _numpy(words: npt.NDArray[Any], embedding_dim: int, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    for number in range(len(queries)):
        all_of_them = numpy_hamming.hamming(words, queries[number : number + 1], embedding_dim=embedding_dim)[0]
        distances[number], rows[number] = _nearest(all_of_them, k)
    return distances, rows


def _faiss(words: npt.NDArray[Any], embedding_dim: int, queries: npt.NDArray[np.uint32], k: int) -> Nearest:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("Searching through FAISS", "faiss", "search") from None
    mask = tail_mask(embedding_dim)
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
