"""One bit a weight, in training too."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.quality.tables.table import Table
from packedbag import PackedEmbeddingBag


class PackedTable(Table):
    """`packedbag.PackedEmbeddingBag`; ``frozen`` bits stay what they were drawn as."""

    def __init__(
        self, rows: int, dim: int, *, scale: str, bits_per_value: int, code: str, initial_scale: float, frozen: bool
    ) -> None:
        super().__init__(rows, dim)
        kind = None if scale == "none" else scale
        options = {"mode": "mean", "include_last_offset": True, "scale": kind, "bits_per_value": bits_per_value}
        self.bag = PackedEmbeddingBag(rows, dim, code=code, **options)
        if self.bag.scale is not None:
            with torch.no_grad():
                self.bag.scale.fill_(initial_scale)
        self.bag.anchor.requires_grad_(not frozen)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        return self.bag(ids, offsets)

    @property
    def width(self) -> int:
        return self.dim // self.bag.bits_per_value

    def held(self) -> list[torch.Tensor]:
        return [self.bag.words, *([] if self.bag.scale is None else [self.bag.scale])]

    def serving_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.held())

    def scales(self) -> list[nn.Parameter]:
        return [] if self.bag.table_scale is None else [self.bag.table_scale]
