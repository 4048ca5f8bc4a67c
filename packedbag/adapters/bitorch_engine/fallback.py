"""What answers the operators that have no handler: ordinary bools, where they are not too many."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from packedbag.adapters.bitorch_engine.packed_bools import OTHERS, PackedBools, check_size
from packedbag.core.errors import ArgumentError


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
    is_view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
    if is_view or torch.Tag.inplace_view in func.tags:
        raise no_view(tensor if tensor is not None else args[0], func.overloadpacket.__name__)
    name = f"{func.overloadpacket.__name__}()"

    def expand(value: Any) -> Any:
        if isinstance(value, PackedBools):
            check_size(value, name)
            return value.to_bool()
        return value

    bools, named = tree_map(expand, args), tree_map(expand, kwargs)
    result = func(*bools, **named)
    for position in written:
        if position < len(args):  # one tensor, or a list of them
            for own, made in zip(tree_leaves(args[position]), tree_leaves(bools[position]), strict=True):
                if isinstance(own, PackedBools):
                    own.copy_(made)
                    result = args[position] if func._schema.returns else None
    if any(isinstance(value, PackedBools) for value in kwargs.values()):
        raise ArgumentError("out", "a packed tensor", "an ordinary one", "Copy the result into it with copy_().")
    return result


def no_view(tensor: PackedBools, what: str) -> ArgumentError:
    """Return the error of a view that would not share the words."""
    return ArgumentError(
        f"{what} of a packed tensor of shape {tuple(tensor.shape)}",
        "a view that its bits cannot give",
        "a slice of rows or columns",
        "Make ordinary bools first, which are a copy: .to_bool().",
    )


def plain(tensor: Any) -> Any:
    """Return packed bools as ordinary ones, and all else as it is."""
    return tensor.to_bool() if isinstance(tensor, PackedBools) else tensor


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


OTHERS.append(others)
