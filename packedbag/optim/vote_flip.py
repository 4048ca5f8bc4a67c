"""`VoteFlip`: gradients vote, and a weight flips when the votes against it have used up its confidence."""

from __future__ import annotations

from typing import Any

from packedbag.optim.base import check_rate
from packedbag.optim.flip_steps import FlipSteps


class VoteFlip(FlipSteps):
    r"""Votes of several steps in k-bit saturating counters; a weight flips when its votes pass zero.

    With g the gradient of a row with respect to its +-1 weights, and S and v as in `CounterSGD`::

        z = g / (sqrt(S) + 1e-8)                   None: z = g
        v <- clamp(v - sign(z)) with probability lr, where |z| > threshold
        v <- v moved toward zero by ``decay``, as in `CounterSGD`

    A vote counts the same whatever the size of its gradient, so that 2 to 4 bits last for many steps; small
    gradients, which are mostly noise, have none. Schedulers lower ``lr``, the chance of a vote.

    Memory in training: ``bits`` bits a weight, the table included, and 32 bits a row with ``adaptivity``.

    Args:
        lr: the probability that a vote counts; above 1, a vote counts as that many.
        bits: k, 2 to 8.
        threshold: in units of the typical size of a row's gradients, >= 0.
        params, adaptivity, decay, scale_lr, seed, process_group: as in `CounterSGD`.

    Source:
        bitorch-engine proposes counting votes of several steps for its boolean embeddings, in the documentation of
        `BinaryEmbeddingBag`. Thresholds against noise: Bop, Helwegen et al., arXiv:1906.02107.

    >>> import torch
    >>> from packedbag import PackedEmbeddingBag
    >>> module = PackedEmbeddingBag(100, 32)
    >>> optimizer = VoteFlip([module.anchor], lr=0.5, bits=2, seed=0)
    >>> module(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        bits: int = 4,
        threshold: float = 1.5,
        adaptivity: str | None = "ema",
        decay: float = 0.0,
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        options = {"lr": lr, "bits": bits, "threshold": threshold, "adaptivity": adaptivity, "decay": decay}
        super().__init__(params, {**options, "scale_lr": scale_lr}, seed=seed, process_group=process_group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        super().check_options(group)
        check_rate("threshold", group["threshold"])

    def rate_and_threshold(self, options: dict[str, Any], counter_bits: int) -> tuple[float, float]:
        """Return the weight of a vote, and how large a gradient must be to have one."""
        return float(options["lr"]), float(options["threshold"])
