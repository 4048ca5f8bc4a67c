"""Real latent weights whose signs are used: the usual way to train binary weights, at 32 bits a weight and more."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.quality.tables.table import SCALE_BYTES, Table


class Sign(torch.autograd.Function):
    """+1 where x >= 0, else -1; the gradient passes as if it were the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class StraightThroughTable(Table):
    """Signs of fp32 latent weights, times a scale that is learned.

    Source:
        Courbariaux, Bengio, David, "BinaryConnect", NeurIPS 2015: signs forward, the gradient to the latent weights,
        which are clipped to [-1, 1] after each update (`ClippedAdam`).
    """

    def __init__(self, rows: int, dim: int, *, std: float, initial_scale: float) -> None:
        super().__init__(rows, dim)
        self.latent = nn.Parameter(torch.randn(rows, dim) * std)
        self.scale = nn.Parameter(torch.tensor(initial_scale))

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        signs = Sign.apply(self.latent)
        return F.embedding_bag(ids, signs, offsets, mode="mean", include_last_offset=offsets is not None) * self.scale

    def held(self) -> list[torch.Tensor]:
        return [self.latent, self.scale]

    def serving_bytes(self) -> int:
        """Return the bytes of the signs, packed 32 to a word, and the scale."""
        return self.rows * -(-self.dim // 32) * 4 + SCALE_BYTES

    def scales(self) -> list[nn.Parameter]:
        return [self.scale]


class ClippedAdam(torch.optim.Adam):
    """Adam whose parameters stay in [-1, 1]: beyond it a latent weight would be slower and slower to flip."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for latent in group["params"]:
                latent.clamp_(-1, 1)
        return loss
