"""`TrainsFloatsToo`: a packed optimizer that takes all parameters of a model, as bitorch-engine's does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from packedbag.adapters.bitorch_engine.float_rule import (
    check_float_gradient,
    check_float_options,
    check_float_parameter,
    copy_of_float_state,
    step_float,
)
from packedbag.ops.sink import sink_of
from packedbag.optim.base import PackedOptimizer


class TrainsFloatsToo(PackedOptimizer):
    """Stands before a packed optimizer in a class's bases, and trains the parameters that are no anchors.

    A step moves floats after the tables: a gradient that is not finite stops it before anything has changed. On a
    GPU the tables' refusal is known only later, and floats have moved, as under any optimizer of torch;
    `torch.amp.GradScaler` skips such a step as a whole.
    """

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        super().check_options(group)
        check_float_options(group)
        if group["first_lr"] is None and float(group["lr"]) > 0:
            group["first_lr"] = float(group["lr"])

    def check_parameter(self, parameter: torch.Tensor) -> None:
        """Raise `ArgumentError` unless ``parameter`` is the anchor of a packed module, or a float."""
        if sink_of(parameter) is None:
            check_float_parameter(parameter)
        else:
            super().check_parameter(parameter)

    def float_rate(self, group: dict[str, Any]) -> float:
        """Return the learning rate of a group's float parameters."""
        return float(group["lr"])

    def _take_step(self) -> None:
        floats = [(parameter, group) for parameter, group in self._floats() if parameter.grad is not None]
        for parameter, _ in floats:
            check_float_gradient(parameter)
        super()._take_step()
        for parameter, group in floats:
            step_float(parameter, self.state[parameter], self.float_rate(group), group)

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        return ((anchor, group) for anchor, group in super()._tables(groups) if sink_of(anchor) is not None)

    def _floats(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if sink_of(parameter) is None:
                    yield parameter, group

    def _copies_of_loaded(self, saved: dict[torch.Tensor, dict[str, Any]]) -> dict[torch.Tensor, dict[str, Any]]:
        loaded = super()._copies_of_loaded(saved)
        for parameter, group in self._floats():
            if parameter in saved:
                loaded[parameter] = copy_of_float_state(parameter, saved[parameter], group)
        return loaded


def relative_rate(group: dict[str, Any]) -> float:
    """Return a group's ``lr`` as a part of the one that it began with: what schedulers have made of it."""
    return float(group["lr"]) / group["first_lr"] if group["first_lr"] else 0.0
