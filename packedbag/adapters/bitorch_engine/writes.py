"""Operators that change packed bools in place: they reach the table, and no other bit of it."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.bit_rows import words_like
from packedbag.adapters.bitorch_engine.combinations import operand
from packedbag.adapters.bitorch_engine.fallback import others, plain
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools, handles
from packedbag.adapters.bitorch_engine.reads import check_mask
from packedbag.adapters.bitorch_engine.views import dimension
from packedbag.core.errors import ShapeError
from packedbag.nn.convert import clear_tail

aten = torch.ops.aten


@handles(aten.copy_)
def copy_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Copy bits from anything that broadcasts, or into an ordinary tensor."""
    tensor, source = args[:2]
    if not isinstance(tensor, PackedBools):
        if tensor.ndim < 2 or source.ndim < 2 or tensor.shape[0] != source.shape[0]:
            return tensor.copy_(plain(source))
        for rows in source.bits.pieces():
            tensor[rows].copy_(source.bits.read(rows))
        return tensor
    words = operand(tensor, source) if tensor.bits.is_whole else None
    if words is not None:
        tensor.bits.words.copy_(words.expand_as(tensor.bits.words))
        clear_tail(tensor.bits.words, tensor.bits.embedding_dim)
        return tensor
    put(tensor, slice(None), source)
    return tensor


@handles(aten.fill_, aten.zero_)
def fill_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set all bits to one value."""
    value = bool(args[1]) if len(args) > 1 else False
    return copy_(func, (args[0], torch.tensor(value, device=args[0].device)), {})


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
    if not isinstance(tensor, PackedBools):
        return getattr(tensor, IN_PLACE[func.overloadpacket])(plain(other))
    words = operand(tensor, other) if tensor.bits.is_whole else None
    if words is None:
        return _by_pieces(tensor, IN_PLACE[func.overloadpacket], other)
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
    if bool(value):
        return combine_(aten.bitwise_or_.Tensor, (tensor, mask), {})
    return combine_(aten.bitwise_and_.Tensor, (tensor, ~mask), {})


@handles(aten.index_put_, aten._index_put_impl_)
def index_put_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Set the bits of rows, of pairs of a row and a column, or of a mask."""
    tensor, indices, values, accumulate = (*args, False)[:4]
    if not isinstance(tensor, PackedBools):
        return func(tensor, [plain(each) for each in indices], plain(values), *args[3:], **kwargs)
    if tensor.ndim < 2 or accumulate:
        return others(func, args, kwargs)
    first, values = indices[0], plain(values).to(torch.bool)
    if first is not None and first.dtype == torch.bool:
        check_mask(tensor, first)
        if first.ndim == 2:
            return _put_mask(tensor, first, values)
        first = plain(first).nonzero().squeeze(1)
    if len(indices) == 1:
        put(tensor, first, values)
        return tensor
    columns = plain(indices[1])
    columns = columns.nonzero().squeeze(1) if columns.dtype == torch.bool else columns
    if first is None:
        wide = values.expand(tensor.shape[0], *columns.shape)
        tensor.bits.rewrite(lambda bits, rows: bits.__setitem__((slice(None), columns), wide[rows]))
        return tensor
    first, columns = torch.broadcast_tensors(first, columns)
    distinct, inverse = first.unique(return_inverse=True)
    bits = tensor.bits.read(distinct).contiguous()
    bits[inverse, columns] = values
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
    return index_put_(func, (tensor, [index] if rows else [None, index], values), {})


@handles(aten.random_, aten.bernoulli_)
def random_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Draw bits anew, piece by piece."""
    args[0].bits.rewrite(lambda bits, rows: func(bits, *args[1:], **kwargs))
    return args[0]


def put(tensor: PackedBools, index: torch.Tensor | slice, values: torch.Tensor) -> None:
    """Set the bits of the rows that ``index`` names to ``values``, which broadcast to (*index.shape, columns)."""
    bits, width = tensor.bits, len(tensor.bits.columns)
    values = plain(values)
    if isinstance(index, slice):
        shape, wanted = (bits.shape[0],), tuple(tensor.shape)
    else:
        shape, wanted = tuple(index.shape), (*index.shape, width)
    try:
        values.expand(wanted)
    except RuntimeError:
        raise ShapeError("values", tuple(values.shape), f"{wanted}, or what broadcasts to it") from None
    count = torch.Size(shape).numel()
    if tensor.gone[1]:
        values = values.unsqueeze(-1)
    if tensor.gone[0] and values.ndim < 2:
        values = values.unsqueeze(0)
    many = values.ndim > 2 or (values.ndim == 2 and len(shape) > 1)
    flat = values.expand(*shape, width).reshape(count, width) if many else values
    if bits.is_whole:
        words = words_like(flat.to(torch.bool), (count, width), tensor.device)
        assert words is not None
        words = words.expand(count, bits.words.shape[1]).clone()
        clear_tail(words, bits.embedding_dim)
        bits.words[index.reshape(-1) if isinstance(index, torch.Tensor) else index] = words
        return
    whole = flat.to(torch.bool).expand(count, width)
    if isinstance(index, slice):
        bits.rewrite(lambda bools, rows: bools.copy_(whole[rows]))
    else:
        bits.write(index.reshape(-1), whole)


def _put_mask(tensor: PackedBools, mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if values.numel() == 1:
        return masked_fill_(None, (tensor, mask, bool(values)), {})
    used = 0

    def change(bits: torch.Tensor, rows: slice) -> None:
        nonlocal used
        chosen = plain(mask[rows])
        count = int(chosen.sum())
        bits[chosen] = values[used : used + count]
        used += count

    tensor.bits.rewrite(change)
    return tensor


def _by_pieces(tensor: PackedBools, method: str, other: Any) -> torch.Tensor:
    """Let a method of ordinary bools combine ``tensor`` with what broadcasts to it."""
    other = plain(other)
    if isinstance(other, torch.Tensor):
        wide = other.expand(tensor.shape)
        wide = wide.unsqueeze(-1) if tensor.gone[1] else wide
        wide = wide.unsqueeze(0) if tensor.gone[0] else wide
        tensor.bits.rewrite(lambda bits, rows: getattr(bits, method)(wide[rows]))
    else:
        tensor.bits.rewrite(lambda bits, rows: getattr(bits, method)(other))
    return tensor
