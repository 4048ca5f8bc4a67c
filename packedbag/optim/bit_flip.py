"""`BitFlip`: a stochastic flip, one bit a weight in training too."""

from __future__ import annotations

from typing import Any, ClassVar

from packedbag.optim.flip_steps import FlipSteps


class BitFlip(FlipSteps):
    """`CounterSGD` with k = 1: a weight flips, by chance, when its gradient asks for the other sign.

    The chance is ``|x|`` of `CounterSGD`, ``lr / (sqrt(S) + 1e-8) * |g|``, at most 1.

    Memory in training: 1 bit a weight, which is the table, and 32 bits a row unless ``adaptivity`` is None.

    Args:
        params, lr, adaptivity, decay, scale_lr, seed, process_group: as in `CounterSGD`.
    """

    allowed_bits: ClassVar[range] = range(1, 2)

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        adaptivity: str | None = "ema",
        decay: float = 0.0,
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        options = {"lr": lr, "bits": 1, "adaptivity": adaptivity, "decay": decay, "scale_lr": scale_lr}
        super().__init__(params, options, seed=seed, process_group=process_group)
