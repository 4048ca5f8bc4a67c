"""The click model of the bench: a table a field, joined, and a perceptron on top."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.quality.config import Config
from benchmarks.quality.data.click_data import Batch, ClickData
from benchmarks.quality.methods import MakeTable


class QualityModel(nn.Module):
    """Tables joined, batch norm where ``input_norm`` asks for it, then Linear, BatchNorm, ReLU, Dropout a layer."""

    def __init__(self, data: ClickData, config: Config, make_table: MakeTable) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.tables = nn.ModuleList(make_table(rows, dim, config, name) for name, rows in data.tables())
        width = sum(table.width for table in self.tables)
        layers: list[nn.Module] = [nn.BatchNorm1d(width)] if config.input_norm else []
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.perceptron = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the logit of each row, (B,)."""
        inputs: list[tuple[torch.Tensor, torch.Tensor | None]] = [(ids[:, None], None) for ids in batch.single.T]
        inputs += batch.bags
        parts = [table(ids, offsets) for table, (ids, offsets) in zip(self.tables, inputs, strict=True)]
        return self.perceptron(torch.cat(parts, dim=1)).squeeze(1)
