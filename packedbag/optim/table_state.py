"""The state of one table in a packed optimizer: how it is made, checked when loaded, and kept beside its words."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from packedbag.core.errors import ArgumentError, StateMismatchError
from packedbag.core.value_codes import columns_per_counter
from packedbag.ops.memory import empty_table
from packedbag.ops.sink import PackedSource


class StateMaker(Protocol):
    """What a packed optimizer says of the state of a table."""

    #: Options that the shape of the state depends on: they cannot change once there is one.
    state_options: tuple[str, ...]

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the state of a table that was never updated."""
        ...


def fresh_state(
    optimizer: StateMaker, source: PackedSource, words: torch.Tensor, group: dict[str, Any]
) -> dict[str, Any]:
    """Return the state of a table before its first update.

    Args:
        optimizer: makes its own part.
        source: the packed module.
        words: (V, W), the table, on the device where the state shall lie; "meta" takes no memory.
        group: the options.
    """
    state: dict[str, Any] = {"num_embeddings": source.num_embeddings, "embedding_dim": source.embedding_dim}
    # What planes hold depends on it: the shapes may agree where the counters do not.
    state["columns_per_counter"] = columns_per_counter(source.bits_per_value, source.code)
    state.update({name: group[name] for name in optimizer.state_options})
    state.update(optimizer.new_state(words, group))
    if source.shard is not None and source.shard.part > 0:
        state.pop("row_state", None)  # the first part of a row's columns keeps its word
    if source.row_scale is not None:
        state["scale_sum"] = torch.zeros(source.num_embeddings, device=words.device)
    return state


def keep_usable(optimizer: StateMaker, state: dict[str, Any], words: torch.Tensor, group: dict[str, Any]) -> None:
    """Move ``state`` to where ``words`` are; raise `ArgumentError` where an option no longer fits it."""
    for name in optimizer.state_options:
        if state[name] != group[name]:
            raise ArgumentError(name, repr(group[name]), f"{state[name]!r}, with which this table's state was made")
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.device != words.device:
            state[name] = value.to(words.device)


def copy_of_loaded(
    optimizer: StateMaker, source: PackedSource, group: dict[str, Any], state: dict[str, Any], table: int
) -> dict[str, Any]:
    """Return a copy of a loaded ``state`` beside the table's words; raise unless it is a state of this table.

    Raises:
        StateMismatchError: a value, a shape or a dtype is not that of a state of table number ``table``.
    """
    for name, value in fresh_state(optimizer, source, source.words.to("meta"), group).items():
        seen, expected = outline(state.get(name)), outline(value)
        if seen != expected:
            raise StateMismatchError(f"the loaded state of table {table}", f"{name}={seen}", f"{name}={expected} there")
    device = source.words.device
    return {k: _copy(v, device) if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _copy(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy in memory like that of a fresh state: a resumed run is as fast as it was."""
    if value.dtype == torch.int32:
        return empty_table(tuple(value.shape), device).copy_(value)
    return value.to(device, copy=True)


def outline(value: Any) -> str:
    """Return what must agree between a saved value and the one expected."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}".removeprefix("torch.")
    return repr(value)
