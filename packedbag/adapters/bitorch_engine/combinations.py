"""Operators that make packed bools of packed bools: copies, and combinations word by word."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.bit_rows import whole_rows, words_like
from packedbag.adapters.bitorch_engine.fallback import others
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools, handles
from packedbag.ops.memory import empty_table

aten = torch.ops.aten


@handles(aten.clone)
def clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed copy of a table; an ordinary one of a row or a column."""
    tensor = args[0]
    if tensor.ndim < 2:
        return others(func, args, kwargs)
    words = tensor.bits.packed()
    copied = empty_table(tuple(words.shape), words.device).copy_(words)
    return type(tensor).of_bits(whole_rows(copied, tensor.shape[1]))


@handles(aten._to_copy)
def to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return a packed copy on another device; another dtype is of ordinary numbers."""
    tensor = args[0]
    if tensor.ndim < 2 or kwargs.get("dtype") not in (None, torch.bool):
        return others(func, args, kwargs)
    device = kwargs.get("device") or tensor.device
    words = tensor.bits.packed()
    moved = empty_table(tuple(words.shape), device).copy_(words, non_blocking=kwargs.get("non_blocking", False))
    return type(tensor).of_bits(whole_rows(moved, tensor.shape[1]))


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
