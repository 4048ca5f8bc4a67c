"""`FlipSteps`: what `BitFlip` and `VoteFlip` share."""

from __future__ import annotations

from typing import Any, ClassVar

from packedbag.optim.base import PackedOptimizer
from packedbag.optim.counter_sgd import CounterSGD, Recipes


class FlipSteps(CounterSGD):
    """`CounterSGD` at rates that the caller gives, and with no spacing between the counters of a thermometer.

    Args:
        params, seed, process_group: as in `CounterSGD`.
        options: of a parameter group, all but ``spacing``.
    """

    recipes: ClassVar[Recipes] = {}

    def __init__(self, params: Any, options: dict[str, Any], *, seed: int | None, process_group: Any) -> None:
        PackedOptimizer.__init__(self, params, {**options, "spacing": 0.0}, seed=seed, process_group=process_group)
