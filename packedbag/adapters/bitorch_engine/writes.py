"""Operators that change packed bools in place: they reach the table, and no other bit of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from packedbag.adapters.bitorch_engine.bit_rows import BitRows, words_like
from packedbag.adapters.bitorch_engine.combinations import operand
from packedbag.adapters.bitorch_engine.fallback import others, plain
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools, handles
from packedbag.adapters.bitorch_engine.reads import as_index, check_mask, pairs
from packedbag.adapters.bitorch_engine.views import dimension
from packedbag.core.errors import DtypeError, ShapeError
from packedbag.nn.convert import clear_tail

aten = torch.ops.aten


@handles(aten.copy_)
def copy_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Copy bits from anything that broadcasts, or into an ordinary tensor."""
    tensor, source = args[:2]
    if not isinstance(tensor, PackedBools):
        if tensor.ndim != 2 or source.ndim < 2 or tensor.shape[0] != source.shape[0]:
            return tensor.copy_(plain(source))
        for rows in source.bits.pieces():
            tensor[rows].copy_(source.bits.read(rows))
        return tensor
    words = operand(tensor, source) if tensor.bits.is_whole else None
    if words is not None:
        tensor.bits.words.copy_(words.expand_as(tensor.bits.words))
        clear_tail(tensor.bits.words, tensor.bits.embedding_dim)
        return tensor
    part = _parts(tensor, source)
    tensor.bits.rewrite(lambda bits, rows: bits.copy_(part(rows)))
    return tensor


@handles(aten.fill_, aten.zero_)
def fill_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set all bits to one value."""
    value = bool(args[1]) if len(args) > 1 else False
    return copy_(func, (args[0], torch.tensor(value, device=args[0].device)), {})


#: Operators of bools, and what does the same to words.
IN_PLACE = {
    aten.bitwise_and_: "bitwise_and_",
    aten.logical_and_: "bitwise_and_",
    aten.bitwise_or_: "bitwise_or_",
    aten.logical_or_: "bitwise_or_",
    aten.bitwise_xor_: "bitwise_xor_",
    aten.logical_xor_: "bitwise_xor_",
}


@handles(*IN_PLACE)
def combine_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Combine the bits of a tensor with others that broadcast to it, in place."""
    tensor, other = args
    method = func.overloadpacket.__name__
    if not isinstance(tensor, PackedBools):
        return getattr(tensor, method)(plain(other))
    words = operand(tensor, other) if tensor.bits.is_whole else None
    if words is None:
        part = _parts(tensor, other)
        tensor.bits.rewrite(lambda bits, rows: getattr(bits, method)(part(rows)))
        return tensor
    getattr(tensor.bits.words, IN_PLACE[func.overloadpacket])(words)
    clear_tail(tensor.bits.words, tensor.bits.embedding_dim)
    return tensor


@handles(aten.bitwise_not_, aten.logical_not_)
def invert_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Change all bits to the other value, in place."""
    tensor = args[0]
    return combine_(aten.bitwise_xor_.Tensor, (tensor, torch.tensor(True, device=tensor.device)), {})


@handles(aten.masked_fill_)
def masked_fill_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set the bits where a mask is True to one value."""
    tensor, mask, value = args
    if not isinstance(tensor, PackedBools):
        return tensor.masked_fill_(plain(mask), plain(value))
    own, words = tensor.bits, operand(tensor, mask) if tensor.bits.is_whole else None
    if words is None:
        part = _parts(tensor, mask)
        own.rewrite(lambda bits, rows: bits.masked_fill_(part(rows), bool(value)))
    elif bool(value):
        own.words.bitwise_or_(words)
        clear_tail(own.words, own.embedding_dim)
    else:
        own.words.bitwise_or_(words).bitwise_xor_(words)  # which needs no inverted copy of the mask
    return tensor


@handles(aten.index_put_, aten._index_put_impl_)
def index_put_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set the bits of rows, of pairs of a row and a column, or of a mask."""
    tensor, indices, values, accumulate = (*args, False)[:4]
    if not isinstance(tensor, PackedBools):
        return func(tensor, [plain(each) for each in indices], plain(values), *args[3:], **kwargs)
    if tensor.ndim < 2 or accumulate:
        return others(func, args, kwargs)
    indices = [as_index(each) for each in indices]
    first, values = indices[0], plain(values)
    if values.dtype != torch.bool:
        raise DtypeError("values", values.dtype, "bool", "Pass values > 0 for the signs of numbers.")
    values = values.to(tensor.device)  # a number that is set comes on the CPU
    if first is not None and first.dtype == torch.bool:
        check_mask(tensor, first)
        if first.ndim == 2:
            return _put_mask(tensor, first, values)
        first = plain(first).nonzero().squeeze(1)
    if len(indices) == 1:
        put(tensor, first, values)
        return tensor
    columns = indices[1]
    columns = columns.nonzero().squeeze(1) if columns.dtype == torch.bool else columns
    if first is None:
        wide = values.expand(tensor.shape[0], *columns.shape)
        tensor.bits.rewrite(lambda bits, rows: bits.__setitem__((slice(None), columns), wide[rows]))
        return tensor
    first, columns = torch.broadcast_tensors(first, columns)
    flat = values.expand(first.shape).reshape(-1)
    for part, distinct, row, column in pairs(tensor, first, columns):
        bits = tensor.bits.read(distinct).contiguous()
        bits[row, column] = flat[part]
        tensor.bits.write(distinct, bits)
    return tensor


@handles(aten.index_fill_, aten.index_copy_)
def index_fill_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set the bits of rows, or of columns, to one value or to those of another tensor."""
    tensor, dim, index, values = args
    if not isinstance(tensor, PackedBools):
        return func(tensor, dim, index, plain(values))
    if tensor.ndim < 2:
        return others(func, args, kwargs)
    values = torch.as_tensor(plain(values), device=tensor.device)
    rows = dimension(tensor, dim) == 0
    if func.overloadpacket is aten.index_fill_:
        values = values.to(torch.bool)
    else:
        wanted = (index.numel(), tensor.shape[1]) if rows else (tensor.shape[0], index.numel())
        if tuple(values.shape) != wanted:
            raise ShapeError("source", tuple(values.shape), f"{wanted}")
    return index_put_(func, (tensor, [index] if rows else [None, index], values), {})


@handles(aten.random_, aten.bernoulli_)
def random_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Draw bits anew, piece by piece."""
    if len(args) > 1 and isinstance(args[1], torch.Tensor):  # a chance for each bit
        part = _parts(args[0], args[1])
        args[0].bits.rewrite(lambda bits, rows: func(bits, part(rows), *args[2:], **kwargs))
    else:
        args[0].bits.rewrite(lambda bits, rows: func(bits, *args[1:], **kwargs))
    return args[0]


def put(tensor: PackedBools, index: torch.Tensor, values: torch.Tensor) -> None:
    """Set the bits of the rows that ``index`` names to ``values``, which broadcast to (*index.shape, columns)."""
    bits, width = tensor.bits, len(tensor.bits.columns)
    shape, count = tuple(index.shape), index.numel()
    wanted = (*shape, width)
    try:
        values.expand(wanted)
    except RuntimeError:
        raise ShapeError("values", tuple(values.shape), f"{wanted}, or what broadcasts to it") from None
    many = values.ndim > 2 or (values.ndim == 2 and len(shape) > 1)
    flat = values.expand(wanted).reshape(count, width) if many else values
    if bits.is_whole:
        words = words_like(flat, (count, width), tensor.device)
        assert words is not None
        words = words.expand(len(words), bits.words.shape[1]).clone()  # one row for all stays one
        clear_tail(words, bits.embedding_dim)
        bits.words[index.reshape(-1)] = words
        return
    bits.write(index.reshape(-1), flat.expand(count, width))


def _put_mask(tensor: PackedBools, mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if values.numel() == 1:
        return masked_fill_(None, (tensor, mask, bool(values)), {})
    total, used = int(mask.count_nonzero()), 0
    if tuple(values.shape) != (total,):
        raise ShapeError("values", tuple(values.shape), f"({total},), one for each True of the mask, or one for all")

    def change(bits: torch.Tensor, rows: slice) -> None:
        nonlocal used
        chosen = plain(mask[rows])
        count = int(chosen.sum())
        bits[chosen] = values[used : used + count]
        used += count

    tensor.bits.rewrite(change)
    return tensor


def _parts(tensor: PackedBools, other: Any) -> Callable[[slice], Any]:
    """Return what gives the part of ``other``, which broadcasts to ``tensor``, that belongs to some of its rows."""
    if isinstance(other, PackedBools) and tuple(other.shape) == tuple(tensor.shape) and not any(other.gone):
        # Words of its own: it may be a view of the columns that are written.
        return BitRows(other.bits.packed(), other.shape[1], range(other.shape[1])).read
    other = plain(other)
    if not isinstance(other, torch.Tensor) or not other.ndim:  # a number, which may be on the CPU as it is
        return lambda rows: other
    try:
        wide = other.expand(tensor.shape)
    except RuntimeError:
        raise ShapeError("values", tuple(other.shape), f"{tuple(tensor.shape)}, or what broadcasts to it") from None
    wide = wide.unsqueeze(-1) if tensor.gone[1] else wide
    wide = wide.unsqueeze(0) if tensor.gone[0] else wide
    return lambda rows: wide[rows]
