"""What the bench asks of a table."""

from __future__ import annotations

import torch
from torch import nn

SCALE_BYTES = 4


class Table(nn.Module):
    """Reduces bags of rows to their mean.

    ``forward(ids, offsets=None)``: ids (B, 1), or (N,) with offsets (B + 1,); the result is (B, width).
    """

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.dim = rows, dim

    @property
    def width(self) -> int:
        """Values of a row, as the model sees them."""
        return self.dim

    def held(self) -> list[torch.Tensor]:
        """Return the tensors that training keeps for the table, its optimizer's state left out."""
        raise NotImplementedError

    def serving_bytes(self) -> int:
        """Return the bytes that serving needs."""
        raise NotImplementedError

    def scales(self) -> list[nn.Parameter]:
        """Return what the perceptron's optimizer trains along with it."""
        return []
