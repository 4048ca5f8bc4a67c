"""What bitorch-engine's `DiodeMix` does with float parameters: Adam with decoupled weight decay."""

from __future__ import annotations

import math
from typing import Any

import torch

from packedbag.core.errors import ArgumentError, DtypeError, StateMismatchError
from packedbag.optim.base import check_rate
from packedbag.optim.table_state import outline

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_float_options(group: dict[str, Any]) -> None:
    """Raise `ArgumentError` for an option of float parameters that is not allowed."""
    betas = group["betas"]
    try:
        is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= float(beta) < 1 for beta in betas)
    except (TypeError, ValueError):  # of what is no number
        is_pair = False
    if not is_pair:
        raise ArgumentError("betas", repr(betas), "two numbers, each >= 0 and below 1")
    check_rate("eps", group["eps"])
    check_rate("weight_decay", group["weight_decay"])
    if not isinstance(group["dtype"], torch.dtype) or not group["dtype"].is_floating_point:
        raise ArgumentError("dtype", group["dtype"], "a floating dtype of torch, of the averages of float parameters")


def check_float_parameter(parameter: torch.Tensor) -> None:
    """Raise `DtypeError` unless ``parameter`` can be trained by `step_float`."""
    if not parameter.is_floating_point():
        hint = "Leave the others out. A layer's weight is trained through its anchor: pass model.parameters()."
        raise DtypeError("params", parameter.dtype, "floats, and anchors of packed modules", hint)


def check_float_gradient(parameter: torch.Tensor) -> None:
    """Raise `ArgumentError` where the gradient of ``parameter`` is sparse: both averages cover the whole of it."""
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise ArgumentError(
            "gradient",
            f"{parameter.grad.layout} of a float parameter of shape {tuple(parameter.shape)}",
            "dense",
            "Make its nn.Embedding with sparse=False, or give it torch.optim.SparseAdam.",
        )


def step_float(parameter: torch.Tensor, state: dict[str, Any], rate: float, group: dict[str, Any]) -> None:
    """Update one float parameter from its gradient, in place.

    Args:
        parameter: has a dense gradient.
        state: its own, empty before the first step.
        rate: the learning rate.
        group: ``betas``, ``eps``, ``weight_decay``, ``correct_bias`` and ``dtype``, that of the averages.
    """
    assert parameter.grad is not None
    if not state:
        state["step"] = 0
        for name in MOMENTS:
            state[name] = torch.zeros_like(parameter, dtype=group["dtype"], memory_format=torch.preserve_format)
    state["step"] += 1
    for name in MOMENTS:  # a module that was moved since
        state[name] = state[name].to(parameter.device)
    mean, square = (state[name] for name in MOMENTS)
    beta1, beta2 = map(float, group["betas"])
    gradient = parameter.grad
    mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    size = rate
    if group["correct_bias"]:
        size *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
    parameter.addcdiv_(mean, square.sqrt().add_(float(group["eps"])), value=-size)
    if group["weight_decay"]:
        parameter.mul_(1 - rate * float(group["weight_decay"]))


def copy_of_float_state(parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a loaded ``state`` beside ``parameter``.

    Raises:
        StateMismatchError: it is the state of another parameter.
    """
    expected = outline(torch.empty_like(parameter, dtype=group["dtype"], device="meta"))
    for name in MOMENTS:
        seen = outline(state.get(name))
        if seen != expected:
            what = "the loaded state of a float parameter"
            raise StateMismatchError(what, f"{name}={seen}", f"{name}={expected} there")
    if "step" not in state:
        raise StateMismatchError("the loaded state of a float parameter", "no step", "one there")
    moments = {name: state[name].to(parameter.device, copy=True) for name in MOMENTS}
    return {"step": int(state["step"]), **moments}
