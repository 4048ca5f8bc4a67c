"""The row-sparse step of a "row" scale."""

from __future__ import annotations

import torch

from packedbag.backends.eager_sums import root
from packedbag.ops.bridge import to_backend, to_torch
from packedbag.optim.row_sums import RowSums
from packedbag.optim.table_step import TableStep

EPSILON = 1e-8


def update_row_scale(table: TableStep, sums: RowSums, scale: torch.Tensor, rate: float) -> RowSums:
    """Take a step of row-wise Adagrad on the scales of the rows of ``sums``, in place.

    Args:
        table: words, whose bits are those of the forward pass, and the state ``scale_sum``, (V,) float32: the sums
            of squared slopes so far.
        sums: gradients without the scale as a factor.
        scale: (V,) float32, one factor a row.
        rate: the learning rate.

    Returns:
        ``sums`` with the scales from before the step as a factor: the gradients of the +-1 weights.

    Source:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12 (2011); one value a row.
    """
    scaled = sums.scaled(to_backend(table.backend, scale[to_torch(sums.rows)]))
    squares = to_torch(table.state["scale_sum"])
    for chunk in sums.chunks():
        rows = to_torch(chunk.rows)
        dots = table.backend.row_dot(table.words, chunk.rows, chunk.total(), embedding_dim=table.embedding_dim)
        slope = to_torch(dots)  # the derivative of the loss by each row's scale
        total = squares[rows] + slope * slope
        squares[rows] = total
        scale[rows] -= rate * slope / (root(total) + EPSILON)
    return scaled
