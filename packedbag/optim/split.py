"""Splits a model's parameters between a packed optimizer and any torch one."""

from __future__ import annotations

import torch

from packedbag.ops.sink import GradientSink, check_anchor


def _sinks(model: torch.nn.Module) -> list[GradientSink]:
    found = [getattr(module, "sink", None) for module in model.modules()]
    return [sink for sink in found if isinstance(sink, GradientSink)]


def packed_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the anchors of all packed modules of ``model``, in its order, for a packed optimizer.

    A "row" scale has no parameter: the packed optimizer trains it with the row.

    Raises:
        PackedBagError: something replaced an anchor, as FSDP does, which is not supported yet.
    """
    anchors = []
    for sink in _sinks(model):
        check_anchor(sink)
        anchors.append(sink.source.anchor)
    return anchors


def dense_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return all other parameters of ``model``, "table" scales included, for any torch optimizer."""
    packed = {id(anchor) for anchor in packed_parameters(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in packed]
