"""`PackedTable`: a packed table in NumPy, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.backends.nearest_rows import nearest_rows
from packedbag.backends.registry import select
from packedbag.core.bags import bounded_offsets, check_indices, check_weights
from packedbag.core.bounds import check_bounds, check_padding_idx
from packedbag.core.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError
from packedbag.core.layout import check_embedding_dim, check_words, view_words, words_per_row
from packedbag.core.modes import FLOATING, PACKED, check_combination, get_mode
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code, values_of

FLOAT32 = np.dtype(np.float32)
INDEX_DTYPES = (np.dtype(np.int64), np.dtype(np.int32))


class PackedTable:
    """A table of +-1, one bit a weight: words, embedding_dim, scale and metadata.

    Args:
        words: (V, W) uint32, or int32 holding the same bytes; kept as it is, a memory map too.
        embedding_dim: D, weights in a row; W must be ceil(D / 32).
        scale: None; one value, which multiplies results last; or (V,) values, one a row.
        bits_per_value: neighbouring columns that make one value in the results of `bag` and `rows`.
        code: how they make it: "thermometer", their mean; or "binary", their mean with the weights 1, 2, 4, ..., where
            2, 4 or 8 make a value and rows have no scales of their own.
        metadata: anything else to keep with the table. ``mode`` and ``padding_idx`` in it are those of `bag` and
            `rows` where a call gives none, so that a module's table answers as the module does.

    >>> from packedbag import pack
    >>> table = PackedTable(pack(np.array([[1.0, -1.0], [1.0, 1.0]])), 2)
    >>> table.bag(np.array([[0, 1]]))
    array([[2., 0.]], dtype=float32)
    """

    def __init__(
        self,
        words: npt.NDArray[Any],
        embedding_dim: int,
        scale: npt.ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        bits_per_value: int = 1,
        code: str = "thermometer",
    ) -> None:
        self.embedding_dim = check_embedding_dim(embedding_dim)
        self.bits_per_value = check_bits_per_value(bits_per_value, self.embedding_dim, "sum", "float32")
        self.code = check_code(code, self.bits_per_value)
        if not isinstance(words, np.ndarray):
            raise ArgumentError("words", f"a {type(words).__name__}", "a NumPy array", "Call .numpy() on a tensor.")
        check_words(words, self.embedding_dim)
        if not words.flags.c_contiguous:
            words = np.ascontiguousarray(words)
        self.words: npt.NDArray[np.uint32] = view_words(words, "uint32")
        self.scale = None if scale is None else self._check_scale(np.asarray(scale))
        self.metadata = dict(metadata or {})
        self.mode = get_mode(self.metadata.get("mode") or "sum").name
        self.padding_idx = check_padding_idx(self.metadata.get("padding_idx"), self.num_embeddings)

    def _check_scale(self, scale: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if scale.dtype.kind not in "fiu":
            raise DtypeError("scale", scale.dtype, "floating point")
        if scale.shape not in ((), (1,), (self.num_embeddings,)):
            raise ShapeError("scale", scale.shape, f"one value, or ({self.num_embeddings},): one value a row")
        if self.code == "binary" and scale.size != 1:
            raise ArgumentError("scale", "one value a row with code='binary'", "None or one value for the table")
        return np.array(scale.reshape(()) if scale.size == 1 else scale, np.float32, order="C")

    @property
    def num_embeddings(self) -> int:
        """V, rows of the table."""
        return int(self.words.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the packed words: V * ceil(D / 32) * 4."""
        return int(self.words.nbytes)

    def __len__(self) -> int:
        return self.num_embeddings

    def __repr__(self) -> str:
        kind = "" if self.scale is None else f", scale={'table' if self.scale.ndim == 0 else 'row'!r}"
        kind += f", bits_per_value={self.bits_per_value}" if self.bits_per_value > 1 else ""
        kind += f", code={self.code!r}" if self.code != "thermometer" else ""
        return f"PackedTable({self.num_embeddings}, {self.embedding_dim}{kind}, {self.nbytes} bytes)"

    def bag(
        self,
        indices: npt.ArrayLike,
        offsets: npt.ArrayLike | None = None,
        mode: str | None = None,
        *,
        per_sample_weights: npt.ArrayLike | None = None,
        padding_idx: int | EllipsisType | None = ...,
        include_last_offset: bool = False,
        bounds: str = "raise",
        output_dtype: npt.DTypeLike = np.float32,
    ) -> npt.NDArray[Any]:
        """Reduce bags of rows without unpacking them.

        Args:
            indices: (N,) or (B, L) int32 or int64, values in [0, V).
            offsets: (B,) bag starts, or (B + 1,) with ``include_last_offset``; None with 2-D indices.
            mode: "sum", "mean", "majority" or "max"; None: the table's own, which is "sum" unless its metadata say.
            padding_idx: a row whose entries are left out of their bags; None: no row is. By default the table's own.
            per_sample_weights, include_last_offset, bounds: as in `packedbag.functional.embedding_bag`.
            output_dtype: float32 or float16; int32 for an unweighted "sum" without scale; uint32 = packed bits
                (B, W) for "majority" and "max" without scale.

        Returns:
            (B, D / bits_per_value). An empty bag is 0, except that it is +1 for "majority".
        """
        mode = self.mode if mode is None else mode
        rows = np.ascontiguousarray(indices)
        starts = None if offsets is None else np.asarray(offsets)
        if starts is None and rows.ndim == 2 and rows.dtype in INDEX_DTYPES:  # 0.2 us, the check 2 us
            num_bags = rows.shape[0]
        else:
            num_bags = check_indices(rows, starts, include_last_offset=include_last_offset)
        if output_dtype is np.float32:  # NumPy takes 2 us to say the name of a dtype
            output, name = FLOAT32, "float32"
        else:
            output = np.dtype(output_dtype).newbyteorder("=")  # kernels write the machine's byte order
            name = output.name
        row_scale = self.scale if self.scale is not None and self.scale.ndim else None
        table_scale = self.scale if row_scale is None else None
        check_combination(
            get_mode(mode),
            name,
            weighted=per_sample_weights is not None,
            row_scale=row_scale is not None,
            table_scale=table_scale is not None,
        )
        weights = None
        if per_sample_weights is not None:
            given = np.asarray(per_sample_weights)
            check_weights(given, rows)
            weights = np.ascontiguousarray(given, np.float32)
        if starts is not None:
            starts = bounded_offsets(starts, rows.size, include_last_offset=include_last_offset)
            starts = np.ascontiguousarray(starts)
        padding = self.padding_idx if padding_idx is ... else check_padding_idx(padding_idx, self.num_embeddings)
        if self.bits_per_value > 1:
            check_bits_per_value(self.bits_per_value, self.embedding_dim, mode, name)
        width = words_per_row(self.embedding_dim) if name == PACKED else self.embedding_dim
        finishes = table_scale is not None or self.bits_per_value > 1
        # What is left to do is done with the float32 result, which is rounded to the output's dtype after it.
        out = np.empty((num_bags, width), np.float32 if finishes else output)
        position = select("cpu", arrays="numpy").bag(
            self.words,
            rows,
            starts,
            weights,
            row_scale,
            out,
            embedding_dim=self.embedding_dim,
            mode=mode,
            output="float32" if finishes else name,
            padding_idx=-1 if padding is None else padding,
            bounds=check_bounds(bounds),
        )
        if position >= 0:
            raise IndexRangeError(position, int(rows.reshape(-1)[position]), self.num_embeddings)
        if not finishes:
            return out
        with np.errstate(over="ignore"):  # float16 has no room for large sums: inf, as IEEE says
            if table_scale is not None:
                out = out * table_scale
            values: npt.NDArray[Any] = values_of(out, self.bits_per_value, self.code)
            return values.astype(output, copy=False)

    def rows(
        self,
        indices: npt.ArrayLike,
        *,
        padding_idx: int | EllipsisType | None = ...,
        bounds: str = "raise",
        output_dtype: npt.DTypeLike = np.float32,
    ) -> npt.NDArray[Any]:
        """Look rows up: any shape -> (*indices.shape, D / bits_per_value); dropped entries are rows of zeros.

        Args:
            indices: int32 or int64, values in [0, V).
            padding_idx: this row reads as zeros; None: no row does. By default the table's own.
            bounds: "raise", "clamp", "skip" or "unchecked".
            output_dtype: float32 or float16.
        """
        if np.dtype(output_dtype).name not in FLOATING:
            raise ArgumentError("output_dtype", np.dtype(output_dtype), "float32 or float16 for a lookup")
        given = np.asarray(indices)
        if given.dtype.name not in ("int32", "int64"):
            raise DtypeError("indices", given.dtype, "int32 or int64", "Convert with .astype('int64').")
        column = given.reshape(-1, 1)
        out = self.bag(column, mode="sum", padding_idx=padding_idx, bounds=bounds, output_dtype=output_dtype)
        return out.reshape(*given.shape, out.shape[1])

    def hamming_topk(
        self, query_words: npt.NDArray[Any], k: int, *, backend: str = "auto"
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the ``k`` rows that differ from each query in the fewest of the D columns.

        The dot product of two rows of +-1 is D minus twice their distance: nearest rows are those of the largest
        product. Every row is looked at, nothing is approximated, and all backends give the same answer. The scale
        counts for nothing, and so does what a column weighs: of values that are binary numbers, near rows need not be
        near values. A memory map is read from start to end.

        Args:
            query_words: (Q, W) or one query (W,), uint32, or int32 holding the same bytes: packed as the table is, as
                by `packedbag.pack`; bits beyond D count for nothing.
            k: 0 to V.
            backend: "native", the compiled scan; "faiss", ``IndexBinaryFlat`` of FAISS (extra: search), which copies
                the table first; "numpy"; or "auto", the first of these that is there.

        Returns:
            Distances (Q, k) int32, ascending, and rows (Q, k) int64; of equal distances the lower row comes first. For
            one query (k,) each.

        Raises:
            ArgumentError, DtypeError, ShapeError: an argument is not as above.
            MissingExtraError: "faiss" is not installed; BackendError: "native" cannot run here.

        >>> table = PackedTable(np.array([[0b111], [0b000], [0b100]], np.uint32), 3)
        >>> distances, rows = table.hamming_topk(np.array([0b110], np.uint32), 2)
        >>> distances.tolist(), rows.tolist()
        ([1, 1], [0, 2])
        """
        return nearest_rows(self.words, query_words, k, embedding_dim=self.embedding_dim, backend=backend)
