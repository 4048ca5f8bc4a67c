"""The row-sparse step of a "row" scale."""

from __future__ import annotations

import torch

EPSILON = 1e-8


def update_row_scale(
    scale: torch.Tensor, squares: torch.Tensor, rows: torch.Tensor, slope: torch.Tensor, rate: float
) -> None:
    """Take a step of row-wise Adagrad on the scales of ``rows``, in place.

    Args:
        scale: (V,) float32, one factor a row.
        squares: (V,) float32, the sums of squared slopes so far.
        rows: (U,) int64, distinct.
        slope: (U,) float32, the derivative of the loss by each row's scale.
        rate: the learning rate.

    Source:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12 (2011); one value a row.
    """
    total = squares[rows] + slope * slope
    squares[rows] = total
    scale[rows] -= rate * slope / (total.sqrt() + EPSILON)
