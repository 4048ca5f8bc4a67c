"""`embedding_bag` and `embedding` on packed words: arguments are validated here, once."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.backends.registry import select
from packedbag.core.bags import check_indices, check_weights
from packedbag.core.bounds import check_bounds, check_padding_idx
from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import check_embedding_dim, check_words, view_words
from packedbag.core.modes import check_combination, get_mode
from packedbag.ops import dispatch
from packedbag.ops.autograd import PackedBagFunction
from packedbag.ops.bridge import to_backend, to_torch
from packedbag.ops.schema import OUTPUTS

INDEX_DTYPES = (torch.int64, torch.int32)


def embedding_bag(
    indices: torch.Tensor,
    words: torch.Tensor,
    offsets: torch.Tensor | None = None,
    *,
    embedding_dim: int,
    mode: str = "sum",
    per_sample_weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    scale: torch.Tensor | float | None = None,
    bounds: str = "raise",
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Reduce bags of rows of +-1 without unpacking the table.

    Args:
        indices: (N,) or (B, L) int32 or int64, values in [0, V).
        words: (V, W) uint32, 32 weights a word, or int32 holding the same bytes; see `packedbag.pack`.
        offsets: (B,) bag starts, or (B + 1,) with ``include_last_offset``; None with 2-D indices.
        embedding_dim: D, the number of weights in a row; need not be a multiple of 32.
        mode: "sum", "mean", "majority" (+1 where the sum is >= 0, else -1) or "max".
        per_sample_weights: floating point, the shape of ``indices``; "sum" and "mean" only, and differentiable.
            A weighted mean divides by the number of entries, not by the sum of weights.
        padding_idx: entries with this row are left out; negative values count from the end.
        scale: one value, which multiplies the result last and is differentiable; or (V,) values, one a row, for
            "sum" and "mean".
        bounds: "raise", "clamp", "skip" (drop the entry) or "unchecked" (the caller promises).
        output_dtype: float32 (default), float16, bfloat16; int32 for an unweighted "sum"; uint32 = packed bits
            (B, W) for "majority" and "max".

    Returns:
        (B, D). An empty bag is 0, except that it is +1 for "majority".

    Raises:
        IndexRangeError: ``bounds="raise"`` and an index lies outside the table.
        OffsetsError, ShapeError, DtypeError, ArgumentError: an argument is not as described.

    Source:
        Klarqvist, Mula, Lemire, "Efficient Computation of Positional Population Counts Using SIMD
        Instructions", arXiv:1911.02696.

    >>> from packedbag import pack
    >>> words = pack(torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]))
    >>> embedding_bag(torch.tensor([[0, 1], [0, 0]]), words, embedding_dim=3)
    tensor([[ 2.,  0.,  0.],
            [ 2., -2.,  2.]])
    """
    dim = check_embedding_dim(embedding_dim)
    check_tensor("words", words)
    check_words(words, dim)
    check_bounds(bounds)
    num_embeddings = words.shape[0]
    row_scale, table_scale = split_scale(scale, num_embeddings)
    return reduce_bags(
        view_words(words.contiguous(), "int32"),
        indices,
        offsets,
        per_sample_weights,
        row_scale,
        table_scale,
        embedding_dim=dim,
        mode=mode,
        padding_idx=check_padding_idx(padding_idx, num_embeddings),
        include_last_offset=include_last_offset,
        bounds=bounds,
        output_dtype=output_dtype,
    )


def embedding(
    indices: torch.Tensor,
    words: torch.Tensor,
    *,
    embedding_dim: int,
    padding_idx: int | None = None,
    scale: torch.Tensor | float | None = None,
    bounds: str = "raise",
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Look rows of +-1 up.

    Args:
        indices: any shape, int32 or int64, values in [0, V).
        words, embedding_dim, padding_idx, scale, bounds: as in `embedding_bag`.
        output_dtype: float32 (default), float16 or bfloat16.

    Returns:
        (*indices.shape, D); padding entries, and entries that ``bounds="skip"`` drops, are rows of zeros.

    >>> from packedbag import pack
    >>> embedding(torch.tensor([1]), pack(torch.tensor([[True, True], [True, False]])), embedding_dim=2)
    tensor([[ 1., -1.]])
    """
    check_lookup_dtype(output_dtype)
    out = embedding_bag(
        as_single_bags(indices),
        words,
        embedding_dim=embedding_dim,
        padding_idx=padding_idx,
        scale=scale,
        bounds=bounds,
        output_dtype=output_dtype,
    )
    return out.view(*indices.shape, out.shape[-1])


def hamming_distances(queries: torch.Tensor, words: torch.Tensor, *, embedding_dim: int) -> torch.Tensor:
    """Count in how many of D columns each row of a table differs from each query: a scan of the whole table.

    Args:
        queries: (Q, W) uint32, or int32 holding the same bytes, as ``mode="majority"`` with packed output gives them.
        words: (V, W), likewise.
        embedding_dim: D; tail bits count for nothing.

    Returns:
        (Q, V) int32, 0..D. The dot product of the +-1 rows is D - 2 * distance.

    >>> from packedbag import pack
    >>> words = pack(torch.tensor([[True, True, False], [False, True, True]]))
    >>> hamming_distances(words[:1], words, embedding_dim=3)
    tensor([[0, 2]], dtype=torch.int32)
    """
    dim = check_embedding_dim(embedding_dim)
    for name, given in (("queries", queries), ("words", words)):
        check_tensor(name, given)
        check_words(given, dim, name)
    check_device("queries", queries, words.device)
    backend = select(words.device.type)
    table, wanted = (to_backend(backend, view_words(t.contiguous(), "int32")) for t in (words, queries))
    return to_torch(backend.hamming(table, wanted, embedding_dim=dim))


def check_tensor(name: str, given: object) -> None:
    """Raise unless ``given`` is a torch tensor: a NumPy array would pass some checks and fail within."""
    if not isinstance(given, torch.Tensor):
        raise ArgumentError(name, f"a {type(given).__name__}", "a torch tensor", "torch.as_tensor makes one.")


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raise unless ``tensor`` is on ``device``."""
    if tensor.device != device:
        raise ArgumentError(name, f"on {tensor.device}", f"on {device}, where the table is")


def as_single_bags(indices: torch.Tensor) -> torch.Tensor:
    """Return ``indices`` as bags of one entry, (N, 1): the sum of one row is the row."""
    check_tensor("indices", indices)
    if indices.dtype not in (torch.int32, torch.int64):
        raise DtypeError("indices", indices.dtype, "int32 or int64", "Convert with .long().")
    return indices.reshape(-1, 1)


def check_lookup_dtype(output_dtype: torch.dtype | None) -> None:
    """Raise unless a lookup can produce ``output_dtype``."""
    if output_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ArgumentError("output_dtype", output_dtype, "float32, float16 or bfloat16 for a lookup")


def split_scale(scale: Any, num_embeddings: int) -> tuple[torch.Tensor | None, torch.Tensor | float | None]:
    """Return (row scale, table scale), of which at most one is not None."""
    if scale is None or isinstance(scale, (int, float)):
        return None, scale
    check_tensor("scale", scale)
    if not scale.is_floating_point():
        raise DtypeError("scale", scale.dtype, "floating point")
    if scale.ndim == 0 or tuple(scale.shape) == (1,):
        return None, scale
    if tuple(scale.shape) != (num_embeddings,):
        raise ShapeError("scale", tuple(scale.shape), f"one value, or ({num_embeddings},): one value a row")
    if scale.requires_grad:
        raise ArgumentError(
            "scale",
            "a (V,) tensor that requires a gradient",
            "detached: its gradient would be dense",
            "PackedEmbeddingBag(..., scale='row') trains it row-sparsely.",
        )
    return scale.to(torch.float32).contiguous(), None


def reduce_bags(
    words: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    per_sample_weights: torch.Tensor | None,
    row_scale: torch.Tensor | None,
    table_scale: torch.Tensor | float | None,
    *,
    embedding_dim: int,
    mode: str,
    padding_idx: int | None,
    include_last_offset: bool,
    bounds: str,
    output_dtype: torch.dtype | None,
    anchor: torch.Tensor | None = None,
    handle: int = -1,
) -> torch.Tensor:
    """Check what differs from call to call, then reduce; the rest was checked when the table was made.

    Args:
        words: (V, W) int32.
        anchor, handle: a packed module's, so that backward feeds its sink; None trains no bits.
    """
    check_tensor("indices", indices)
    if offsets is not None:
        check_tensor("offsets", offsets)
    if offsets is not None or indices.ndim != 2 or indices.dtype not in INDEX_DTYPES:  # 0.2 us, the check 0.7 us
        check_indices(indices, offsets, include_last_offset=include_last_offset)
    final = output_dtype or torch.float32
    weighted, row_scaled, table_scaled = per_sample_weights is not None, row_scale is not None, table_scale is not None
    name = OUTPUTS.get(final) or str(final).removeprefix("torch.")
    check_combination(get_mode(mode), name, weighted=weighted, row_scale=row_scaled, table_scale=table_scaled)
    if not (words.is_cpu and indices.is_cpu):  # two devices compare in 0.5 us, two flags in 0.1 us
        check_device("indices", indices, words.device)
    if offsets is not None:
        check_device("offsets", offsets, words.device)
    if row_scale is not None:  # the kernel reads it by its address, which elsewhere is no memory of this process
        check_device("scale", row_scale, words.device)
    if per_sample_weights is not None:
        check_tensor("per_sample_weights", per_sample_weights)
        check_device("per_sample_weights", per_sample_weights, words.device)
        if per_sample_weights.dtype is not torch.float32 or per_sample_weights.shape != indices.shape:
            check_weights(per_sample_weights, indices)
            per_sample_weights = per_sample_weights.to(torch.float32)
    # The scale multiplies the float32 result, which is rounded to the output's dtype after it.
    dtype = final if table_scale is None else torch.float32
    options = (embedding_dim, mode, -1 if padding_idx is None else padding_idx, include_last_offset, bounds)
    trains = torch.is_grad_enabled() and final.is_floating_point
    if trains and (
        (anchor is not None and anchor.requires_grad)
        or (per_sample_weights is not None and per_sample_weights.requires_grad)
    ):
        out: torch.Tensor = PackedBagFunction.apply(
            anchor, per_sample_weights, handle, words, indices, offsets, row_scale, options, dtype
        )
    else:
        out = dispatch.bag(words, indices, offsets, row_scale, *options, per_sample_weights, dtype)
    return out if table_scale is None else (out * table_scale).to(final)
