"""Dense views of packed things, to compare with torch's own modules."""

from __future__ import annotations

import torch

from packedbag.backends import get
from packedbag.ops.sink import CALL


def signs(module):
    """Return the +-1 weights (V, D) float32 of a packed module."""
    return module.to_bool().float() * 2 - 1


def twin(module, **kwargs):
    """Return a torch.nn.EmbeddingBag that holds the same weights."""
    bag = torch.nn.EmbeddingBag(
        module.num_embeddings,
        module.embedding_dim,
        mode=module.mode,
        include_last_offset=module.include_last_offset,
        padding_idx=module.padding_idx,
        **kwargs,
    )
    with torch.no_grad():
        bag.weight.copy_(signs(module))
    return bag


def dense_gradient(module):
    """Drain a module's sink into a dense gradient (V, D), through the oracle."""
    gradients = module.sink.drain()
    out = torch.zeros(module.num_embeddings, module.embedding_dim)
    if gradients is None:
        return out
    oracle = get("reference")
    rows, starts, order = oracle.merge(gradients.rows.numpy())
    factor = float(module.anchor.grad) / (gradients.calls * CALL)
    module.anchor.grad = None
    scale = None if module.row_scale is None else module.row_scale.numpy()[rows]
    out[torch.from_numpy(rows)] = torch.from_numpy(
        oracle.sum_rows(
            gradients.grad.numpy(),
            gradients.bags.numpy(),
            order,
            starts,
            weights=None if gradients.weights is None else gradients.weights.detach().numpy(),
            scale=scale,
            counts=None if gradients.counts is None else gradients.counts.numpy(),
            columns=None if gradients.columns is None else gradients.columns.numpy(),
            factor=factor,
        )
    )
    return out
