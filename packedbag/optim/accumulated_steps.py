"""`AccumulatedSteps`: one step of a packed optimizer for the gradients of several batches."""

from __future__ import annotations

import math
from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.optim.base import PackedOptimizer


class AccumulatedSteps:
    """Lets a packed optimizer step once for several batches: for more of them, the lower its rate.

    A counter of few bits cannot move by less than one count: where the rate falls, chance decides more and more what
    it does. So a rate of f times the first one is reached half by smaller steps, half by longer sums::

        batches of a step = min(most, round(first / sqrt(f)))
        lr of the step    = sqrt(f) * the first lr

    Call it where the optimizer would be called, once a batch. Gradients wait in the modules' sinks: memory for
    ``most`` batches of (rows, gradients). They are in no checkpoint: `flush` before saving one. What clears the
    anchors' gradients, as ``model.zero_grad()``, forgets them: call `zero_grad` of this and of other optimizers.

    Args:
        optimizer: whose step is taken; schedulers go on setting its ``lr``.
        first: batches of a step at the first rate, at least 1.
        most: at most so many batches, at least ``first``.

    Source:
        Batches that grow in place of rates that fall: Smith, Kindermans, Ying, Le, "Don't Decay the Learning Rate,
        Increase the Batch Size", arXiv:1711.00489.

    >>> import torch
    >>> from packedbag import PackedEmbeddingBag
    >>> from packedbag.optim import CounterSGD
    >>> module = PackedEmbeddingBag(100, 32)
    >>> bits = AccumulatedSteps(CounterSGD([module.anchor], lr=0.2, bits=4, seed=0), first=2)
    >>> for _ in range(4):
    ...     bits.zero_grad()
    ...     module(torch.tensor([[1, 2]])).sum().backward()
    ...     print(bits.step())
    False
    True
    False
    True
    """

    def __init__(self, optimizer: PackedOptimizer, *, first: int = 2, most: int = 16) -> None:
        if not isinstance(optimizer, PackedOptimizer):
            raise ArgumentError("optimizer", f"a {type(optimizer).__name__}", "a packed optimizer, such as CounterSGD")
        if first < 1:
            raise ArgumentError("first", first, "at least 1")
        if most < first:
            raise ArgumentError("most", most, f"at least first={first}")
        self.optimizer, self.first, self.most = optimizer, first, most
        self.waiting = 0
        self._first_lr = [float(group["lr"]) for group in optimizer.param_groups]

    @property
    def batches(self) -> int:
        """Batches of a step at the rate of now, that of the first parameter group."""
        root = self._root(self.optimizer.param_groups[0], self._first_lr[0])
        return self.most if root * self.most <= self.first else max(1, round(self.first / root))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, unless they wait for a step to come."""
        if self.waiting == 0:
            self.optimizer.zero_grad(set_to_none)

    def step(self) -> bool:
        """Count a batch, and update the tables where enough of them wait; say whether they were updated."""
        self.waiting += 1
        return self.waiting >= self.batches and self.flush()

    def flush(self) -> bool:
        """Update the tables with the gradients that wait; say whether there were any."""
        if self.waiting == 0:
            return False
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        given = [group["lr"] for group in groups]
        try:
            for group, first in zip(groups, self._first_lr, strict=True):
                group["lr"] = first * self._root(group, first)
            self.optimizer.step()
        finally:
            for group, lr in zip(groups, given, strict=True):
                group["lr"] = lr
        self.waiting = 0
        return True

    @staticmethod
    def _root(group: dict[str, Any], first: float) -> float:
        return math.sqrt(float(group["lr"]) / first) if first else 1.0
