"""Operators that read packed bools: views, rows, copies, counts, and all for which ordinary bools are made."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from packedbag.adapters.bitorch_engine.bit_rows import BitRows, whole_rows, words_like
from packedbag.adapters.bitorch_engine.packed_bools import OTHERS, PackedBools, check_size, handles
from packedbag.core.errors import ArgumentError
from packedbag.ops.memory import empty_table

aten = torch.ops.aten


def dimension(tensor: PackedBools, dim: int) -> int:
    """Return which of (rows, columns) dimension ``dim`` of ``tensor`` is, 0 or 1."""
    if not -tensor.ndim <= dim < tensor.ndim:
        raise IndexError(f"dimension {dim} of a tensor with {tensor.ndim} dimensions")
    return [axis for axis in (0, 1) if not tensor.gone[axis]][dim]


# Views: they share the words, and what is written to them reaches the table ------------------------------------


@handles(aten.detach, aten.alias, aten.lift_fresh)
def alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the same bits as another tensor."""
    tensor = args[0]
    return type(tensor).of_bits(tensor.bits, tensor.gone)


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
    sizes = [min(sizes, length - start) for start in range(0, length, sizes)] if isinstance(sizes, int) else sizes
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    return [slice_(func, (tensor, dim, a, a + size), {}) for a, size in zip(starts, sizes, strict=True)]


@handles(aten.view, aten._unsafe_view, aten.expand, aten.reshape, aten._reshape_alias)
def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedBools:
    """Return the same view where the shape stays; no other lies in words as it would in bools."""
    tensor, shape = args[:2]
    if isinstance(shape, torch.dtype):
        raise _no_view(tensor, f"view({shape})")
    wanted = list(shape)
    for position, size in enumerate(wanted):
        if size == -1 and len(wanted) == tensor.ndim:
            wanted[position] = tensor.shape[position]
    if tuple(wanted) != tuple(tensor.shape):
        raise _no_view(tensor, f"{func.overloadpacket.__name__}({', '.join(map(str, shape))})")
    return alias(func, (tensor,), {})


def _no_view(tensor: PackedBools, what: str) -> ArgumentError:
    return ArgumentError(
        f"{what} of a packed tensor of shape {tuple(tensor.shape)}",
        "a view that its bits cannot give",
        "a slice of rows or columns",
        "Make ordinary bools first, which are a copy: .to_bool().",
    )


# Rows by index: ordinary bools ---------------------------------------------------------------------------------


@handles(aten.index_select)
def index_select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the rows that ``index`` names, bool."""
    tensor, dim, index = args
    if tensor.ndim == 2 and dimension(tensor, dim) == 0:
        return tensor.bits.read(index.reshape(-1))
    return others(func, args, kwargs)


@handles(aten.embedding)
def embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the rows of ``torch.nn.functional.embedding``, (*indices.shape, D) bool."""
    tensor, indices = args[:2]
    rows: torch.Tensor = tensor.bits.read(indices.reshape(-1))
    return rows.reshape(*indices.shape, rows.shape[1])


@handles(aten.index)
def index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return ``tensor[indices]`` for tensors of indices or a mask, bool."""
    tensor, indices = args
    indices = [plain(each) if each is not None and each.ndim < 2 else each for each in indices]
    if tensor.ndim < 2:
        return others(func, (tensor, indices), kwargs)
    bits, first = tensor.bits, indices[0]
    if first is None:  # columns of all rows
        return torch.cat([bits.read(rows)[:, indices[1]] for rows in bits.pieces()] or [bits.read()[:, indices[1]]])
    if first.ndim == 2 and first.dtype == torch.bool:
        check_mask(tensor, first)
        return torch.cat([bits.read(rows)[plain(first[rows])] for rows in bits.pieces()] or [bits.read()[:0, 0]])
    if first.dtype == torch.bool:
        check_mask(tensor, first)
        first = first.nonzero().squeeze(1)
    if len(indices) == 1:
        rows = bits.read(first.reshape(-1))
        return rows.reshape(*first.shape, rows.shape[1])
    # Pairs of a row and a column: of each row that occurs, whatever is asked of it.
    columns = indices[1].nonzero().squeeze(1) if indices[1].dtype == torch.bool else indices[1]
    first, columns = torch.broadcast_tensors(first, columns)
    distinct, inverse = first.unique(return_inverse=True)
    return bits.read(distinct)[inverse, columns]


def check_mask(tensor: PackedBools, mask: torch.Tensor) -> None:
    """Raise unless ``mask`` has the first dimensions of ``tensor``."""
    if tuple(mask.shape) != tuple(tensor.shape[: mask.ndim]):
        raise IndexError(
            f"the shape of the mask {tuple(mask.shape)} does not match that of the tensor {tuple(tensor.shape)}"
        )


def plain(tensor: Any) -> Any:
    """Return packed bools as ordinary ones, and all else as it is."""
    return tensor.to_bool() if isinstance(tensor, PackedBools) else tensor


# Copies and combinations: packed -------------------------------------------------------------------------------


@handles(aten.clone)
def clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed copy of a table; an ordinary one of a row or a column."""
    tensor = args[0]
    if tensor.ndim < 2:
        return others(func, args, kwargs)
    words = tensor.bits.packed()
    return type(tensor).of_words(empty_table(tuple(words.shape), words.device).copy_(words), tensor.shape[1])


@handles(aten._to_copy)
def to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed copy on another device; another dtype is of ordinary numbers."""
    tensor = args[0]
    if tensor.ndim < 2 or kwargs.get("dtype") not in (None, torch.bool):
        return others(func, args, kwargs)
    device = kwargs.get("device") or tensor.device
    words = tensor.bits.packed()
    moved = empty_table(tuple(words.shape), device).copy_(words, non_blocking=kwargs.get("non_blocking", False))
    return type(tensor).of_words(moved, tensor.shape[1])


@handles(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like)
def filled_like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed tensor of one value; of another dtype, an ordinary one."""
    tensor, value = args[0], func.overloadpacket is aten.ones_like
    if kwargs.get("dtype") not in (None, torch.bool) or tensor.ndim < 2:
        stand_in = torch.empty((), dtype=torch.bool, device=tensor.device).expand(tensor.shape)
        kwargs = {**kwargs, "memory_format": torch.contiguous_format}
        ordinary: torch.Tensor = func(stand_in, *args[1:], **kwargs)
        return ordinary
    if func.overloadpacket is aten.full_like:
        value = bool(args[1])
    words = tensor.bits.packed()
    device = kwargs.get("device") or tensor.device
    filled = empty_table(tuple(words.shape), device).fill_(-1 if value else 0)
    return type(tensor).of_bits(whole_rows(filled, tensor.shape[1]))


COMBINATIONS = {
    aten.bitwise_and: torch.bitwise_and,
    aten.logical_and: torch.bitwise_and,
    aten.mul: torch.bitwise_and,
    aten.bitwise_or: torch.bitwise_or,
    aten.logical_or: torch.bitwise_or,
    aten.bitwise_xor: torch.bitwise_xor,
    aten.logical_xor: torch.bitwise_xor,
    aten.ne: torch.bitwise_xor,
    aten.eq: lambda a, b: ~(a ^ b),
}


@handles(*COMBINATIONS)
def combine(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed tensor of two tables' bits, or of a table's and bools that broadcast to it."""
    tensor, other = args if isinstance(args[0], PackedBools) else args[::-1]
    words = operand(tensor, other)
    if kwargs or words is None:
        return others(func, args, kwargs)
    made = COMBINATIONS[func.overloadpacket](tensor.bits.packed(), words)
    return type(tensor).of_bits(whole_rows(made, tensor.shape[1]))


@handles(aten.bitwise_not, aten.logical_not)
def invert(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed tensor of the other bits."""
    tensor = args[0]
    if kwargs or tensor.ndim < 2:
        return others(func, args, kwargs)
    return type(tensor).of_bits(whole_rows(~tensor.bits.packed(), tensor.shape[1]))


@handles(aten.masked_fill)
def masked_fill(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed copy with a value where a mask is set."""
    tensor, mask, value = args
    words = operand(tensor, mask) if isinstance(tensor, PackedBools) else None
    if words is None:
        return others(func, args, kwargs)
    own = tensor.bits.packed()
    return type(tensor).of_bits(whole_rows(own | words if bool(value) else own & ~words, tensor.shape[1]))


def operand(tensor: PackedBools, other: Any) -> torch.Tensor | None:
    """Return words to combine with those of ``tensor``; None where bools have to be made of both."""
    if tensor.ndim < 2:
        return None
    if isinstance(other, PackedBools):
        if tuple(other.shape) == tuple(tensor.shape):
            return other.bits.packed().to(tensor.device)
        other = other.to_bool() if other.ndim < 2 or other.shape[0] == 1 else None
    if isinstance(other, torch.Tensor | bool):
        return words_like(other, tuple(tensor.shape), tensor.device)
    return None


# Counts --------------------------------------------------------------------------------------------------------


@handles(aten.count_nonzero, aten.sum, aten.any, aten.all)
def count(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Count the bits that are set, of everything or along dimensions, piece by piece."""
    tensor, dims = args[0], (args[1] if len(args) > 1 else kwargs.get("dim"))
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if tensor.ndim < 2 or set(kwargs) - {"dim", "keepdim", "dtype"}:
        return others(func, args, kwargs)
    listed = [dims] if isinstance(dims, int) else list(dims or (0, 1))
    axes = tuple(sorted({dimension(tensor, dim) for dim in listed}))
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


# All others ----------------------------------------------------------------------------------------------------


def others(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer an operator that has no handler: on ordinary bools, where they are not too many.

    One that changes packed bools in place gets bools, which are written back; one whose result would be a view of
    them is refused, since writing to it would not reach the table.
    """
    made = func.decompose(*args, **kwargs)  # into operators that may have a handler
    if made is not NotImplemented:
        return made
    written = [position for position, arg in enumerate(func._schema.arguments) if _writes(arg)]
    tensor = next((arg for arg in args if isinstance(arg, PackedBools)), None)
    if any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns):
        raise _no_view(tensor if tensor is not None else args[0], func.overloadpacket.__name__)
    name = f"{func.overloadpacket.__name__}()"

    def expand(value: Any) -> Any:
        if isinstance(value, PackedBools):
            check_size(value, name)
            return value.to_bool()
        return value

    bools, named = tree_map(expand, args), tree_map(expand, kwargs)
    result = func(*bools, **named)
    for position in written:
        if position < len(args) and isinstance(args[position], PackedBools):
            args[position].copy_(bools[position])
            return args[position]
    if any(isinstance(value, PackedBools) for value in kwargs.values()):
        raise ArgumentError("out", "a packed tensor", "an ordinary one", "Copy the result into it with copy_().")
    return result


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


OTHERS.append(others)
