"""The gradient of a bag of packed rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from packedbag.ops import dispatch


class PackedBagFunction(torch.autograd.Function):
    """``torch.ops.packedbag.bag`` with its gradients.

    With g the gradient of the output (B, D), r_i the +-1 row of entry i of bag b, w_i its weight, s_i its row
    scale, n the bag's length after dropped entries are left out, the gradient with respect to r_i is

    - "sum": ``g[b] * w_i * s_i``
    - "mean": ``g[b] * w_i * s_i / n``
    - "majority": ``g[b] / n``, the mean's, straight through the sign (Bengio, Leonard, Courville,
      "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432)
    - "max": ``g[b]`` in the columns where i is the first kept entry whose bit equals the result, else 0

    and with respect to w_i ``dot(g[b], r_i) * s_i`` ("mean": divided by n). The former never becomes a tensor:
    backward hands (indices, g) to the module's `packedbag.ops.sink.GradientSink` and returns the anchor's
    gradient. A table scale is applied outside, so that torch differentiates it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor | None,
        per_sample_weights: torch.Tensor | None,
        handle: int,
        words: torch.Tensor,
        indices: torch.Tensor,
        offsets: torch.Tensor | None,
        row_scale: torch.Tensor | None,
        options: tuple[int, str, int, bool, str],
        output_dtype: torch.dtype,
    ) -> torch.Tensor:
        """Reduce the bags; see `packedbag.ops.schema.bag`.

        ``options`` are embedding_dim, mode, padding_idx, include_last_offset and bounds: each argument of
        ``apply`` costs 0.2 us.
        """
        ctx.save_for_backward(words, indices, offsets, row_scale, per_sample_weights)
        ctx.handle = handle
        ctx.options = options
        return dispatch.bag(words, indices, offsets, row_scale, *options, per_sample_weights, output_dtype)

    @staticmethod
    @once_differentiable  # the sums are linear in every input but the weights, whose second derivative no op has
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Push grad_out into the sink, and differentiate the weights where they ask for it."""
        (grad_out,) = grad_outputs
        words, indices, offsets, row_scale, weights = ctx.saved_tensors
        anchor_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            # An `empty` stands in each call's offsets, because common-subexpression elimination leaves `empty`
            # alone: two calls of one module on the same indices stay two pushes under torch.compile.
            ends = torch.empty(0, dtype=torch.int64, device=indices.device)
            if offsets is not None:
                ends = torch.cat([ends, offsets.to(torch.int64)])
            anchor_grad = torch.ops.packedbag.sink_push(ctx.handle, indices, ends, weights, grad_out)
        if ctx.needs_input_grad[1]:
            weight_grad = torch.ops.packedbag.weight_gradient(
                words, indices, offsets, row_scale, *ctx.options, grad_out
            )
        return (anchor_grad, weight_grad, *(None,) * 7)
