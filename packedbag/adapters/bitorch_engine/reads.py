"""Operators that read packed bools: rows by index as ordinary bools, and counts, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from packedbag.adapters.bitorch_engine import bit_rows
from packedbag.adapters.bitorch_engine.fallback import others, plain
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools, handles
from packedbag.adapters.bitorch_engine.views import dimension

aten = torch.ops.aten


@handles(aten.index_select)
def index_select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the rows that ``index`` names, bool."""
    tensor, dim, index = args
    if tensor.ndim == 2 and index.ndim < 2 and dimension(tensor, dim) == 0:
        return tensor.bits.read(_from_zero(index.reshape(-1)))
    return others(func, args, kwargs)


@handles(aten.embedding)
def embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the rows of ``torch.nn.functional.embedding``, (*indices.shape, D) bool."""
    tensor, indices = args[:2]
    if tensor.ndim < 2:
        return others(func, args, kwargs)
    rows: torch.Tensor = tensor.bits.read(_from_zero(indices.reshape(-1)))
    return rows.reshape(*indices.shape, rows.shape[1])


@handles(aten.index)
def index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return ``tensor[indices]`` for tensors of indices or a mask, bool."""
    tensor, indices = args
    if not isinstance(tensor, PackedBools):
        return func(tensor, [plain(each) for each in indices], **kwargs)  # type: ignore[no-any-return]
    indices = [as_index(each) for each in indices]
    if tensor.ndim < 2:
        return others(func, (tensor, indices), kwargs)
    bits, first = tensor.bits, indices[0]
    if first is None:  # columns of all rows
        return torch.cat([bits.read(rows)[:, indices[1]] for rows in bits.pieces()] or [bits.read()[:, indices[1]]])
    if first.ndim == 2 and first.dtype == torch.bool:
        check_mask(tensor, first)
        return torch.cat([bits.read(rows)[plain(first[rows])] for rows in bits.pieces()] or [bits.read().reshape(-1)])
    if first.dtype == torch.bool:
        check_mask(tensor, first)
        first = first.nonzero().squeeze(1)
    if len(indices) == 1:
        rows = bits.read(first.reshape(-1))
        return rows.reshape(*first.shape, rows.shape[1])
    columns = indices[1].nonzero().squeeze(1) if indices[1].dtype == torch.bool else indices[1]
    first, columns = torch.broadcast_tensors(first, columns)
    found = torch.empty(first.numel(), dtype=torch.bool, device=tensor.device)
    for part, distinct, row, column in pairs(tensor, first, columns):
        found[part] = bits.read(distinct)[row, column]
    return found.reshape(first.shape)


def pairs(
    tensor: PackedBools, rows: torch.Tensor, columns: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield pairs of a row and a column in pieces, so that their rows are few bools.

    Each piece is which pairs it has; the rows that occur in them, distinct; which of these each pair has; its column.
    """
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    step = max(1, bit_rows.CHUNK_WEIGHTS // max(1, tensor.bits.embedding_dim))
    for start in range(0, max(1, len(rows)), step):  # of no pair a piece, too, whose indices are checked
        part = slice(start, start + step)
        distinct, inverse = rows[part].unique(return_inverse=True)
        yield part, distinct, inverse, columns[part]


def as_index(index: Any) -> Any:
    """Return an index of a dimension as torch takes it: an ordinary tensor, unless it is a mask of a whole table."""
    if index is None:
        return None
    index = plain(index) if index.ndim < 2 else index
    return index.to(torch.bool) if index.dtype == torch.uint8 else index


def _from_zero(index: torch.Tensor) -> torch.Tensor:
    """Return ``index``; raise where it counts from the end, which only ``tensor[index]`` allows."""
    if not index.is_meta and index.numel() and int(index.min()) < 0:
        raise IndexError(f"index {int(index.min())} is out of range: rows count from 0")
    return index


def check_mask(tensor: PackedBools, mask: torch.Tensor) -> None:
    """Raise unless ``mask`` has the first dimensions of ``tensor``."""
    if tuple(mask.shape) != tuple(tensor.shape[: mask.ndim]):
        raise IndexError(
            f"the shape of the mask {tuple(mask.shape)} does not match that of the tensor {tuple(tensor.shape)}"
        )


@handles(aten.count_nonzero, aten.sum, aten.any, aten.all)
def count(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Count the bits that are set, of everything or along dimensions, piece by piece."""
    tensor, dims = args[0], (args[1] if len(args) > 1 else kwargs.get("dim"))
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    as_bools = func.overloadpacket in (aten.any, aten.all) and isinstance(dims, (list, tuple)) and not dims
    if tensor.ndim < 2 or as_bools or set(kwargs) - {"dim", "keepdim", "dtype"}:
        return others(func, args, kwargs)
    listed = [dims] if isinstance(dims, int) else list(dims or (0, 1))
    axes = tuple(sorted({dimension(tensor, dim) for dim in listed}))
    if len(axes) < len(listed):
        raise RuntimeError(f"dim={tuple(listed)} names a dimension twice")
    counts = tensor.bits.count(axes)
    if not keep:
        counts = counts.reshape([size for axis, size in enumerate(counts.shape) if axis not in axes])
    packet = func.overloadpacket
    if packet is aten.any:
        return counts > 0
    if packet is aten.all:
        return counts == torch.Size(tensor.shape[axis] for axis in axes).numel()
    return counts if kwargs.get("dtype") is None else counts.to(kwargs["dtype"])


@handles(aten.equal)
def equal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether two tensors have the same shape and bits."""
    tensor, other = args if isinstance(args[0], PackedBools) else args[::-1]
    if tuple(tensor.shape) != tuple(other.shape):
        return False
    if tensor.ndim < 2:
        return bool(torch.equal(plain(tensor), plain(other)))
    if isinstance(other, PackedBools):
        return torch.equal(tensor.bits.packed(), other.bits.packed())
    return all(torch.equal(tensor.bits.read(rows), other[rows]) for rows in tensor.bits.pieces())
