"""Views of packed bools: they share the words, and what is written to them reaches the table."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.bit_rows import BitRows
from packedbag.adapters.bitorch_engine.fallback import no_view
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools, handles

aten = torch.ops.aten


def dimension(tensor: PackedBools, dim: int) -> int:
    """Return which of (rows, columns) dimension ``dim`` of ``tensor`` is, 0 or 1."""
    if not -tensor.ndim <= dim < tensor.ndim:
        raise IndexError(f"dimension {dim} of a tensor with {tensor.ndim} dimensions")
    return [axis for axis in (0, 1) if not tensor.gone[axis]][dim]


@handles(aten.detach, aten.alias, aten.lift_fresh)
def alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the same bits as another tensor."""
    tensor = args[0]
    return type(tensor).of_bits(tensor.bits, tensor.gone)


@handles(aten.detach_)
def detach_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the tensor itself: gradients never reach it."""
    tensor: PackedBools = args[0]
    return tensor


@handles(aten.slice)
def slice_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the view ``tensor[start:end:step]``."""
    tensor, dim, start, end, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
    bits, axis = tensor.bits, dimension(tensor, dim)
    if axis == 0:
        bits = BitRows(bits.words[start:end:step], bits.embedding_dim, bits.columns)
    else:
        bits = BitRows(bits.words, bits.embedding_dim, bits.columns[start:end:step])
    return type(tensor).of_bits(bits, tensor.gone)


@handles(aten.select)
def select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the view ``tensor[index]``, one dimension less."""
    tensor, dim, index = args
    bits, axis = tensor.bits, dimension(tensor, dim)
    size = bits.shape[axis]
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of bounds for dimension {dim} with size {size}")
    index %= size
    words, columns = bits.words, bits.columns
    if axis == 0:
        words = words[index : index + 1]
    else:
        columns = columns[index : index + 1]
    gone = (tensor.gone[0] or axis == 0, tensor.gone[1] or axis == 1)
    return type(tensor).of_bits(BitRows(words, bits.embedding_dim, columns), gone)


@handles(aten.unbind)
def unbind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[PackedBools]:
    """Return a view of each row, or of each column."""
    tensor, dim = (*args, 0)[:2]
    return [select(func, (tensor, dim, index), {}) for index in range(tensor.bits.shape[dimension(tensor, dim)])]


@handles(aten.split, aten.split_with_sizes)
def split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[PackedBools]:
    """Return views of neighbouring rows, or columns."""
    tensor, sizes, dim = (*args, 0)[:3]
    length = tensor.bits.shape[dimension(tensor, dim)]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)] if length else [0]
    if sum(sizes) != length:
        raise RuntimeError(f"split sizes {list(sizes)} of a dimension of size {length}: they must sum to it")
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    return [slice_(func, (tensor, dim, a, a + size), {}) for a, size in zip(starts, sizes, strict=True)]


@handles(aten.view, aten._unsafe_view, aten.expand, aten.reshape, aten._reshape_alias)
def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the same view where the shape stays; no other lies in words as it would in bools."""
    tensor, shape = args[:2]
    if isinstance(shape, torch.dtype):
        raise no_view(tensor, f"view({shape})")
    wanted = list(shape)
    for position, size in enumerate(wanted):
        if size == -1 and len(wanted) == tensor.ndim:
            wanted[position] = tensor.shape[position]
    if tuple(wanted) != tuple(tensor.shape):
        raise no_view(tensor, f"{func.overloadpacket.__name__}({', '.join(map(str, shape))})")
    return alias(func, (tensor,), {})
