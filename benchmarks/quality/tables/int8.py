"""One byte a weight, written back after each update by stochastic rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.quality.tables.fp32 import adagrad_steps
from benchmarks.quality.tables.table import Table

LEVELS = 255


class Int8Table(Table):
    """Rows of 8-bit codes with a scale and a bias a row, fp32: w = code * scale + bias.

    A training forward dequantizes the batch's rows into a leaf, whose gradient the optimizer finds; no real copy of
    the table ever stands.

    Source:
        FBGEMM's 8-bit row-wise format (FloatToFused8BitRowwiseQuantized), and its training with stochastic rounding:
        Zhang et al., "Training with Low-precision Embedding Tables", NeurIPS 2018 workshop.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, rows: int, dim: int, *, std: float) -> None:
        super().__init__(rows, dim)
        self.register_buffer("codes", torch.zeros(rows, dim, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(rows, 1))
        self.register_buffer("bias", torch.zeros(rows, 1))
        self.write(torch.arange(rows), torch.randn(rows, dim) * std)
        #: The rows of the last training batch, and their real weights.
        self.batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return real weights, (U, D)."""
        return self.codes[rows].float() * self.scale[rows] + self.bias[rows]

    def write(self, rows: torch.Tensor, weights: torch.Tensor) -> None:
        """Quantize ``weights`` (U, D); on average over the rounding, `read` returns them."""
        low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
        scale = (high - low) / LEVELS
        # A row of equal weights has no spread to divide by; its bias says all.
        codes = torch.floor((weights - low) / torch.where(scale > 0, scale, 1.0) + torch.rand_like(weights))
        self.codes[rows] = codes.clamp(0, LEVELS).to(torch.uint8)
        self.scale[rows], self.bias[rows] = scale, low

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        rows, places = torch.unique(ids, return_inverse=True)
        weights = self.read(rows)
        if self.training:
            weights.requires_grad_()
            self.batch = (rows, weights)
        return F.embedding_bag(places, weights, offsets, mode="mean", include_last_offset=offsets is not None)

    def held(self) -> list[torch.Tensor]:
        return [self.codes, self.scale, self.bias]

    def serving_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.held())


class Int8Adagrad(torch.optim.Optimizer):
    """Row-wise Adagrad on `Int8Table`: read, step, write back, for the rows of the batch alone."""

    def __init__(self, tables: list[Int8Table], lr: float, l2: float) -> None:
        self._tables = tables
        # torch wants parameters; these stand for the tables, and their state is the tables'.
        super().__init__([nn.Parameter(torch.empty(0)) for _ in tables], {"lr": lr, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        for stand_in, table in zip(group["params"], self._tables, strict=True):
            if table.batch is None or table.batch[1].grad is None:
                continue
            rows, weights = table.batch
            table.batch = None
            sums = self.state[stand_in].setdefault("sums", torch.zeros(table.rows, 1))
            grad = weights.grad + group["l2"] * weights
            table.write(rows, weights - adagrad_steps(sums, rows, grad, group["lr"]))
