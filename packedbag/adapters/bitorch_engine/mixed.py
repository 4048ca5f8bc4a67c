"""`TrainsFloatsToo`: a packed optimizer that takes all parameters of a model, as bitorch-engine's does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
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

    A step moves floats after the tables: a table's gradient that is not finite stops it before anything has changed;
    those of floats are not looked at, as under any optimizer of torch. On a GPU the tables' refusal is known only
    later, and floats have moved; `torch.amp.GradScaler` skips such a step as a whole.
    """

    #: The ids of parameters of a copy that were anchors in its original.
    _copied: Set[int] = frozenset()

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

    def __getstate__(self) -> dict[str, Any]:
        # A copy without the modules must not take their anchors for floats: it would train no bit, and not say so.
        return {**super().__getstate__(), "_anchors": [self._is_anchor(parameter) for parameter in self._parameters()]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        anchors = state.pop("_anchors", None)  # torch loads a state_dict through this method, too
        super().__setstate__(state)
        if anchors is not None:
            self._copied = {id(each) for each, is_anchor in zip(self._parameters(), anchors, strict=True) if is_anchor}

    def _parameters(self) -> Iterator[torch.Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _is_anchor(self, parameter: torch.Tensor) -> bool:
        return sink_of(parameter) is not None or id(parameter) in self._copied

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        return ((anchor, group) for anchor, group in super()._tables(groups) if self._is_anchor(anchor))

    def _floats(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self._is_anchor(parameter):
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
