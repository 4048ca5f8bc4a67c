"""How rates fall over a run: one factor for all rates, those of the perceptron and those of the tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from packedbag.recsys.schedule import factor

#: Where "step" lowers the rates, as parts of the run, and to what.
STEPS = ((0.6, 1.0), (0.85, 0.1), (1.0, 0.01))


def _step(done: float) -> float:
    return next(by for end, by in STEPS if done < end or end == 1.0)


#: The factor by the part of the run that is done, in [0, 1).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": partial(factor, "constant"),
    "cosine": partial(factor, "cosine"),
    "step": _step,
}


class Schedule:
    """Sets the rates of optimizers before each step; remembers what they started from.

    Packed optimizers keep a second rate in their groups, ``scale_lr``; None there follows ``lr`` by itself.
    """

    def __init__(self, name: str, optimizers: list[Any], steps: int) -> None:
        self._factor = SCHEDULES[name]
        self._steps = steps
        self._start = [
            (group, rate, group[rate])
            for optimizer in optimizers
            for group in optimizer.param_groups
            for rate in ("lr", "scale_lr")
            if group.get(rate) is not None
        ]

    def set(self, step: int) -> None:
        """Set the rates for ``step``, counted from 0."""
        by = self._factor(step / self._steps)
        for group, rate, start in self._start:
            group[rate] = start * by
