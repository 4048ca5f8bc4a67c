"""`CounterSGD`: every weight is the sign of a k-bit saturating integer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from packedbag.backends.counter_rule import CounterRule
from packedbag.core.errors import ArgumentError
from packedbag.core.thermometer import whole_grains
from packedbag.core.value_codes import check_counter_bits
from packedbag.ops.sink import sink_of
from packedbag.optim.base import check_rate, singles
from packedbag.optim.counter_steps import CounterSteps, new_counters
from packedbag.optim.table_step import TableStep

ADAPTIVITIES = ("ema", "adagrad", None)

#: lr and decay by bits, chosen on validation rows of MovieLens-1M for 2, 4 and 8; the others lie between these.
#: 2 and 4 were found with `AccumulatedSteps`.
RECIPES = {
    2: {"lr": 0.3, "decay": 0.03},
    3: {"lr": 0.25, "decay": 0.05},
    4: {"lr": 0.2, "decay": 0.08},
    5: {"lr": 0.16, "decay": 0.11},
    6: {"lr": 0.125, "decay": 0.15},
    7: {"lr": 0.1, "decay": 0.2},
    8: {"lr": 0.08, "decay": 0.25},
}
#: The same of binary numbers, by bits of a counter: chosen for 8, and thought to do for the others.
BINARY_RECIPES = {bits: {"lr": 0.2, "decay": 0.1} for bits in (4, 6, 8)}
#: By code, lr and decay by bits of a counter.
Recipes = dict[str, dict[int, dict[str, float]]]


class CounterSGD(CounterSteps):
    r"""Stochastic gradient descent on k-bit saturating integers, whose sign bits are the packed table.

    A weight's counter v lies in [-2^(k-1), 2^(k-1) - 1]; v >= 0 is +1. The table holds the sign, the optimizer
    the other k - 1 bits (the confidence: how far the weight is from flipping), packed in planes. With g the
    gradient of a row with respect to its +-1 weights::

        S <- S + (mean(g^2) - S) / min(t, 100)    "ema": t = how often the row was touched
        S <- S + mean(g^2)                        "adagrad"
        x = lr * 2^(k-1) / (sqrt(S) + 1e-8) * g   (None: x = lr * 2^(k-1) * g)
        d = min(1/8, decay * lr * sqrt(T / S) * steps / t)    T: a typical S of the table; None: decay * lr
        v <- clamp(v - round(x + d * (v + 1/2 - c)))  rounded stochastically, at most 2^k at once

    The decay takes the part that L2 regularization under Adam has for floats: confidences shrink in proportion to
    themselves, the more so the seldomer their row occurs and the smaller its gradients are. What is not confirmed is
    forgotten, and the memory of a weight is about ``1 / (decay * lr)`` touches long. c is 0, except where a value has
    several bits: see `packedbag.core.thermometer`.

    Where the p bits of a value are a binary number (``code="binary"``), one counter of p * k bits drives them: its
    highest p bits stand in the table. v, the rule and the random numbers are then of values, with p * k in place of k;
    p * k is at most 8, so that 4 bits a value take ``bits=2``.

    Only rows that occurred are read or written. Random numbers are a function of (seed, table, step, row,
    column): the result does not depend on threads or backend.

    Memory in training: ``bits`` bits a weight, the table included, and 32 bits a row with ``adaptivity``.

    A module's "row" scale is trained here too, by row-wise Adagrad at ``scale_lr`` (default: ``lr``).

    Args:
        params: `packedbag.optim.packed_parameters(model)`, or groups of them.
        lr: the step, as a part of the counter's range: a gradient of typical size moves a counter by
            ``lr * 2^(k-1)``. None: `RECIPES`, 0.08 for 8 bits, 0.2 for 4, 0.3 for 2; 0.2 for binary numbers.
        bits: k, 2 to 8.
        adaptivity: "ema", "adagrad" or None: how a row's gradients are brought to one size.
        decay: >= 0, how fast confidences shrink, in proportion to ``lr``; 0 for not at all. None: `RECIPES`, 0.25
            for 8 bits, 0.08 for 4, 0.03 for 2; 0.1 for binary numbers.
        spacing: 0 to 1, of thermometers (``bits_per_value`` above 1): how far apart the counters of one value's bits
            come to rest, as a part of the counter's range.
        scale_lr: rate of row scales; None follows ``lr``.
        seed: of the stochastic rounding, 0 <= seed < 2^64; None draws one from torch's generator.
        process_group: whose ranks' gradients are gathered in `step`; None: that of a surrounding DDP.

    Source:
        Stochastic rounding: Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv:1502.02551.
        Row-wise statistics: Duchi, Hazan, Singer, "Adaptive Subgradient Methods", JMLR 12 (2011), one value a
        row. Random numbers: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    >>> from packedbag import PackedEmbeddingBag
    >>> module = PackedEmbeddingBag(100, 32)
    >>> optimizer = CounterSGD([module.anchor], lr=0.05, seed=0)
    >>> module(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    allowed_bits: ClassVar[range] = range(2, 9)
    #: What a rate of None stands for; where there is none, rates are the caller's.
    recipes: ClassVar[Recipes] = {"thermometer": RECIPES, "binary": BINARY_RECIPES}
    state_options = ("bits", "adaptivity")

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        *,
        bits: int = 8,
        adaptivity: str | None = "ema",
        decay: float | None = None,
        spacing: float = 0.2,
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {"lr": lr, "bits": bits, "adaptivity": adaptivity, "decay": decay, "spacing": spacing}
        defaults["scale_lr"] = scale_lr
        super().__init__(params, defaults, seed=seed, process_group=process_group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        if not hasattr(group["bits"], "__index__") or group["bits"] not in self.allowed_bits:
            first, last = self.allowed_bits[0], self.allowed_bits[-1]
            raise ArgumentError("bits", group["bits"], f"in {first}..{last}" if first < last else str(first))
        for name, value in self._recipe(group).items():
            if group[name] is None:
                group[name] = value
        super().check_options(group)
        if group["adaptivity"] not in ADAPTIVITIES:
            raise ArgumentError("adaptivity", repr(group["adaptivity"]), "'ema', 'adagrad' or None")
        check_rate("decay", group["decay"])
        if not 0 <= group["spacing"] <= 1:
            raise ArgumentError("spacing", group["spacing"], "in 0..1")

    def _recipe(self, group: dict[str, Any]) -> dict[str, float]:
        """Return the rates for the tables of a group; raise `ArgumentError` where ``bits`` are too many for one."""
        bits, known = int(group["bits"]), {}
        for sink in map(sink_of, group["params"]):
            value = (1, "thermometer") if sink is None else (sink.source.bits_per_value, sink.source.code)
            known[value] = self.recipes.get(value[1], {}).get(check_counter_bits(bits, *value), {})
        recipe, *others = known.values() or ({},)
        if any(other != recipe for other in others) and None in (group["lr"], group["decay"]):
            allowed = "given where tables of binary values share a group with others"
            raise ArgumentError("lr", "None", allowed, "Give each kind a parameter group of its own, or lr and decay.")
        return recipe

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return planes (V, W, k - 1), row words (V,) and totals, all 0: confidence 0, never touched."""
        return new_counters(words, group["bits"], row_words=group["adaptivity"] is not None)

    def rate_and_threshold(self, options: dict[str, Any], counter_bits: int) -> tuple[float, float]:
        """Return `CounterRule`'s rate and threshold, for counters of so many bits."""
        return float(options["lr"]) * 2 ** (counter_bits - 1), -1.0

    def rule(self, table: TableStep) -> CounterRule:
        """Return how the counters of ``table`` change in this step."""
        options, columns = table.options, table.columns_per_counter
        rate, threshold = singles(*self.rate_and_threshold(options, options["bits"] * columns))
        (decay,) = singles(float(options["lr"]) * float(options["decay"]))
        return CounterRule(
            embedding_dim=table.embedding_dim,
            bits=options["bits"],
            rate=rate,
            adaptivity=options["adaptivity"],
            decay=decay,
            threshold=threshold,
            spacing=self._spacing(table),
            group=table.bits_per_value // columns,
            seed=options["seed"],
            step=table.step,
            table=table.table,
            columns_per_counter=columns,
        )

    def _spacing(self, table: TableStep) -> float:
        """Return how far apart, in counts, the counters of a value's bits come to rest."""
        part = table.options["spacing"] if table.bits_per_value > table.columns_per_counter else 0.0
        return whole_grains(part * 2 ** (table.options["bits"] - 1))
