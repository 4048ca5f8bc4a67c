"""Bags of row numbers in compressed form, and the check that offsets really describe them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, DtypeError, OffsetsError, ShapeError

INDEX_DTYPES = ("int32", "int64")


def dtype_name(x: Any) -> str:
    """Return the dtype's name, the same for NumPy and torch."""
    return str(x.dtype).removeprefix("torch.")


def check_indices(indices: Any, offsets: Any, *, include_last_offset: bool) -> int:
    """Check ranks and dtypes (NumPy or torch, no values are read) and return the number of bags.

    ``indices`` is (B, L) with ``offsets`` None, or (N,) with ``offsets`` (B,) starts, or (B + 1,) with the end
    when ``include_last_offset``: the forms that `torch.nn.EmbeddingBag` accepts.
    """
    if dtype_name(indices) not in INDEX_DTYPES:
        raise DtypeError("indices", indices.dtype, "int32 or int64", "Convert with .long() or .astype('int64').")
    if indices.ndim == 2:
        if offsets is not None:
            raise ArgumentError("offsets", "given with 2-D indices", "None (each row of indices is a bag)")
        return int(indices.shape[0])
    if indices.ndim != 1:
        raise ShapeError("indices", tuple(indices.shape), "(N,) with offsets, or (B, L)")
    if offsets is None:
        raise ArgumentError("offsets", "None with 1-D indices", "a 1-D array of bag starts", "Or pass (B, L) indices.")
    if dtype_name(offsets) not in INDEX_DTYPES:
        raise DtypeError("offsets", offsets.dtype, "int32 or int64")
    if offsets.ndim != 1:
        raise ShapeError("offsets", tuple(offsets.shape), "1-D")
    if include_last_offset and offsets.shape[0] == 0:
        raise ShapeError("offsets", (0,), "at least one long", "include_last_offset=True means that the end is listed.")
    return int(offsets.shape[0]) - int(include_last_offset)


def check_weights(weights: Any, indices: Any) -> None:
    """Raise unless ``per_sample_weights`` is floating point and has the shape of ``indices``."""
    if dtype_name(weights) not in ("float32", "float16", "bfloat16", "float64"):
        raise DtypeError("per_sample_weights", weights.dtype, "floating point")
    if tuple(weights.shape) != tuple(indices.shape):
        raise ShapeError("per_sample_weights", tuple(weights.shape), f"the shape of indices, {tuple(indices.shape)}")


def check_offsets(offsets: npt.NDArray[Any], num_indices: int) -> None:
    """Raise `OffsetsError` at the first value of ``offsets`` (B + 1,) or (B,) that cannot be a bag's start."""
    if not len(offsets):
        return
    if offsets[0] != 0:
        raise OffsetsError(0, int(offsets[0]), "0")
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    beyond = np.flatnonzero(offsets > num_indices)
    fall = int(falls[0]) + 1 if len(falls) else len(offsets)
    past = int(beyond[0]) if len(beyond) else len(offsets)
    if fall < past:
        raise OffsetsError(fall, int(offsets[fall]), f"at least offsets[{fall - 1}] = {int(offsets[fall - 1])}")
    if past < len(offsets):
        raise OffsetsError(past, int(offsets[past]), f"at most {num_indices}, the number of indices")


def bounded_offsets(offsets: npt.NDArray[Any], num_indices: int, *, include_last_offset: bool) -> npt.NDArray[np.int64]:
    """Return checked offsets (B + 1,) int64, the end included."""
    if include_last_offset:
        check_offsets(offsets, num_indices)
        return offsets.astype(np.int64, copy=False)
    starts = np.empty(len(offsets) + 1, np.int64)
    starts[:-1] = offsets
    starts[-1] = num_indices if len(offsets) else 0  # without a bag, no index is in one
    # With the end in its place, offsets that start at 0 and never fall are right: 2 us. To find the first wrong one
    # takes 10 us.
    if starts[0] != 0 or np.count_nonzero(starts[1:] < starts[:-1]):
        check_offsets(offsets, num_indices)
    return starts
