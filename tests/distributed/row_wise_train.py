"""``packedbag`` with a model that sees one row at a time, and learns the same however rows are spread over ranks.

Its perceptron is a fixed weighted sum of its inputs: batch norm and dropout of the real one see a rank's part of a
batch, and the gradients of dense weights are sums that ranks add up in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch

from packedbag.cli.app import main
from packedbag.recsys import sharded_model


class FixedSum(torch.nn.Module):
    """(n, width) float32 -> (n, 1) logits in float64.

    In float32, torch's sigmoid of 4 numbers in 100 depends on whether they stand at the end of a batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(-1.0, 2.0, width, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the sum of each row."""
        return (inputs * self.weights).sum(1, keepdim=True)


def row_wise(width: int, hidden: Sequence[int], dropout: float) -> FixedSum:
    """Stand in for `packedbag.recsys.model.perceptron`."""
    return FixedSum(width)


if __name__ == "__main__":
    with mock.patch.object(sharded_model, "perceptron", row_wise):
        main()
