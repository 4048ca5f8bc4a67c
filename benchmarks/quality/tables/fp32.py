"""Real weights, and row-wise Adagrad: one float of state a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.quality.tables.table import Table

EPSILON = 1e-8


class Fp32Table(Table):
    """`torch.nn.EmbeddingBag`."""

    def __init__(self, rows: int, dim: int, *, std: float, sparse: bool) -> None:
        super().__init__(rows, dim)
        if sparse:  # torch warns unless asked for or against; these gradients nn.EmbeddingBag makes, and makes well
            torch.sparse.check_sparse_tensor_invariants.disable()
        self.bag = nn.EmbeddingBag(rows, dim, mode="mean", include_last_offset=True, sparse=sparse)
        nn.init.normal_(self.bag.weight, std=std)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        return self.bag(ids, offsets)

    def held(self) -> list[torch.Tensor]:
        return [self.bag.weight]

    def serving_bytes(self) -> int:
        return self.bag.weight.nbytes


def adagrad_steps(sums: torch.Tensor, rows: torch.Tensor, grad: torch.Tensor, lr: float) -> torch.Tensor:
    """Add the rows' mean squared gradients to ``sums`` (V, 1), and return what to take off them, (U, D).

    Source:
        FBGEMM's EXACT_ROWWISE_ADAGRAD; Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12, 2011.
    """
    totals = sums[rows] + grad.square().mean(1, keepdim=True)
    sums[rows] = totals
    return lr / (totals.sqrt() + EPSILON) * grad


class RowwiseAdagrad(torch.optim.Optimizer):
    """Trains real weights on sparse gradients: only rows of the batch are touched, by L2 (``l2``) too."""

    def __init__(self, params: Any, lr: float, l2: float) -> None:
        super().__init__(params, {"lr": lr, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                sums = self.state[weight].setdefault("sums", torch.zeros(len(weight), 1))
                grad = weight.grad.coalesce()
                rows = grad.indices()[0]
                values = grad.values() + group["l2"] * weight[rows]
                weight[rows] -= adagrad_steps(sums, rows, values, group["lr"])
