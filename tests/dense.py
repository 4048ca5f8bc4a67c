"""Dense views of packed things, to compare with torch's own modules."""

from __future__ import annotations

import torch

from packedbag.backends import get
from packedbag.ops.sink import CALL, without_dropped


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


def numpy_of(tensor):
    """Return a tensor's values as NumPy, from whatever device; None for None."""
    return None if tensor is None else tensor.detach().cpu().numpy()


def dense_gradient(module):
    """Drain a module's sink into a dense gradient (V, D), through the oracle."""
    gradients = module.sink.drain()
    out = torch.zeros(module.num_embeddings, module.embedding_dim)
    if gradients is None:
        return out
    gradients = without_dropped(gradients, module.num_embeddings)
    oracle = get("reference")
    rows, starts, order = oracle.merge(numpy_of(gradients.rows))
    factor = float(module.anchor.grad) / (gradients.calls * CALL)
    module.anchor.grad = None
    scale = None if module.row_scale is None else numpy_of(module.row_scale)[rows]
    out[torch.from_numpy(rows).to(out.device)] = torch.from_numpy(
        oracle.sum_rows(
            numpy_of(gradients.grad),
            numpy_of(gradients.bags),
            order,
            starts,
            weights=numpy_of(gradients.weights),
            scale=scale,
            counts=numpy_of(gradients.counts),
            columns=numpy_of(gradients.columns),
            factor=factor,
        )
    ).to(out.device)
    return out
