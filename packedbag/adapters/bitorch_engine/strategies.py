"""The two strategies that bitorch-engine's documentation proposes, which train a model's floats, too."""

from __future__ import annotations

from typing import Any

import torch

from packedbag import optim
from packedbag.adapters.bitorch_engine.mixed import TrainsFloatsToo, relative_rate
from packedbag.optim.base import PackedOptimizer, check_rate


class _WithFloatRate(TrainsFloatsToo):
    """Floats have a rate of their own: the one of bits is a chance."""

    def check_options(self, group: dict[str, Any]) -> None:
        super().check_options(group)
        check_rate("float_lr", group["float_lr"])

    def float_rate(self, group: dict[str, Any]) -> float:
        return float(group["float_lr"]) * relative_rate(group)


class BitFlip(_WithFloatRate, optim.BitFlip):
    """A bit flips, by chance, when its gradient asks for the other sign: `packedbag.optim.BitFlip`, and floats.

    Args:
        params: ``model.parameters()``, or groups: anchors of packed modules, and floats.
        lr: of the bits, the chance of a flip at a gradient of typical size.
        float_lr: the learning rate of floats at the first ``lr``: a scheduler of ``lr`` changes both alike.
        adaptivity, decay, scale_lr: of the bits, as in `packedbag.optim.BitFlip`.
        betas, eps, weight_decay, correct_bias, dtype: of floats, as in `DiodeMix`.
        seed, process_group: as in `DiodeMix`.

    >>> from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
    >>> model = torch.nn.Sequential(BinaryEmbeddingBag(num_embeddings=100, embedding_dim=32), torch.nn.Linear(32, 1))
    >>> optimizer = BitFlip(model.parameters(), lr=0.02, float_lr=1e-3, seed=0)
    >>> model(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        float_lr: float = 1e-3,
        adaptivity: str | None = "ema",
        decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        dtype: torch.dtype = torch.float32,
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        bits = {"lr": lr, "bits": 1, "adaptivity": adaptivity, "decay": decay, "spacing": 0.0, "scale_lr": scale_lr}
        floats = _float_options(float_lr, betas, eps, weight_decay, correct_bias, dtype)
        PackedOptimizer.__init__(self, params, bits | floats, seed=seed, process_group=process_group)


class VoteFlip(_WithFloatRate, optim.VoteFlip):
    """Gradients vote in k-bit counters, over several steps: `packedbag.optim.VoteFlip`, and floats.

    Args:
        params: ``model.parameters()``, or groups: anchors of packed modules, and floats.
        lr: of the bits, the chance that a vote counts.
        float_lr: the learning rate of floats at the first ``lr``: a scheduler of ``lr`` changes both alike.
        bits: k, 2 to 8: bits a weight, the table included.
        threshold, adaptivity, decay, scale_lr: of the bits, as in `packedbag.optim.VoteFlip`.
        betas, eps, weight_decay, correct_bias, dtype: of floats, as in `DiodeMix`.
        seed, process_group: as in `DiodeMix`.

    >>> from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
    >>> model = torch.nn.Sequential(BinaryEmbeddingBag(num_embeddings=100, embedding_dim=32), torch.nn.Linear(32, 1))
    >>> optimizer = VoteFlip(model.parameters(), lr=0.5, bits=2, seed=0)
    >>> model(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        *,
        float_lr: float = 1e-3,
        bits: int = 4,
        threshold: float = 1.5,
        adaptivity: str | None = "ema",
        decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        dtype: torch.dtype = torch.float32,
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        votes = {"lr": lr, "bits": bits, "threshold": threshold, "adaptivity": adaptivity, "decay": decay}
        floats = _float_options(float_lr, betas, eps, weight_decay, correct_bias, dtype)
        options = {**votes, "spacing": 0.0, "scale_lr": scale_lr, **floats}
        PackedOptimizer.__init__(self, params, options, seed=seed, process_group=process_group)


def _float_options(
    float_lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    correct_bias: bool,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return what a group says of floats."""
    options = {"float_lr": float_lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return {**options, "correct_bias": correct_bias, "dtype": dtype, "first_lr": None}
