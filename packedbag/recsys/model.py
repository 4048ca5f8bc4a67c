"""A click-through-rate model: one table for each categorical field, then a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from packedbag.core.errors import ArgumentError
from packedbag.nn import PackedEmbeddingBag
from packedbag.recsys.chunk import Field
from packedbag.recsys.device import sent
from packedbag.recsys.rows import Rows

KINDS = ("packed", "fp32")

#: Standard deviation of a fresh fp32 weight. Batch norm follows the tables, so that only its proportion to the
#: learning rate matters.
FP32_INIT = 0.05


class ClickModel(nn.Module):
    """Tables of one kind, joined, batch-normalised, and a perceptron on top.

    A field that holds one id a row is looked up, a bag is averaged, a weighted bag is summed with its weights.

    Args:
        fields: (F,) fields.
        rows: (F,) rows of each table.
        kind: "packed" (`PackedEmbeddingBag` with a learnable scale a table), or its twin "fp32"
            (`torch.nn.EmbeddingBag` with sparse gradients).
        embedding_dim: D of every table.
        bits_per_value, code: of packed tables; the perceptron sees D / bits_per_value values of a field.
        hidden: widths of the hidden layers.
        dropout: share of the hidden units that is left out in training.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        rows: Sequence[int],
        *,
        kind: str,
        embedding_dim: int,
        bits_per_value: int,
        code: str,
        hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ArgumentError("kind", repr(kind), "'packed' or 'fp32'")
        self.tables = nn.ModuleList(
            _table(kind, field, count, embedding_dim, bits_per_value, code)
            for field, count in zip(fields, rows, strict=True)
        )
        width = len(self.tables) * embedding_dim // (bits_per_value if kind == "packed" else 1)
        self.perceptron = perceptron(width, hidden, dropout)

    @property
    def device(self) -> torch.device:
        """Where the tables are; a batch is sent there."""
        return next(self.perceptron.parameters()).device

    def forward(self, batch: Rows) -> torch.Tensor:
        """Return the logit of each row, (n,) float32, on the device of the tables."""
        device = self.device
        parts = []
        for table, column in zip(self.tables, batch.columns, strict=True):
            weights = None if column.weights is None else sent(column.weights, device)
            parts.append(table(sent(column.indices, device), sent(column.offsets, device), weights))
        logits: torch.Tensor = self.perceptron(torch.cat(parts, dim=1))
        return logits.squeeze(1)


def perceptron(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Return layers from ``width`` inputs to one logit."""
    layers: list[nn.Module] = [nn.BatchNorm1d(width)]
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.BatchNorm1d(size), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _table(kind: str, field: Field, rows: int, embedding_dim: int, bits_per_value: int, code: str) -> nn.Module:
    mode = "sum" if field.weighted else "mean"
    if kind == "packed":
        options = {"include_last_offset": True, "scale": "table", "bits_per_value": bits_per_value}
        return PackedEmbeddingBag(rows, embedding_dim, mode=mode, code=code, **options)
    table = nn.EmbeddingBag(rows, embedding_dim, mode=mode, include_last_offset=True, sparse=True)
    nn.init.normal_(table.weight, std=FP32_INIT)
    return table
