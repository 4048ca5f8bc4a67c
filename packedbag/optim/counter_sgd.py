"""`CounterSGD`: every weight is the sign of a k-bit saturating integer."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from packedbag.backends.protocol import CounterRule, FusesCounterSteps
from packedbag.core.errors import ArgumentError
from packedbag.ops.memory import empty_table
from packedbag.ops.sink import Gradients
from packedbag.optim.base import PackedOptimizer
from packedbag.optim.device_control import DeviceControl
from packedbag.optim.row_sums import RowSums
from packedbag.optim.table_step import TableStep

ADAPTIVITIES = ("ema", "adagrad", None)


class CounterSGD(PackedOptimizer):
    r"""Stochastic gradient descent on k-bit saturating integers, whose sign bits are the packed table.

    A weight's counter v lies in [-2^(k-1), 2^(k-1) - 1]; v >= 0 is +1. The table holds the sign, the optimizer
    the other k - 1 bits (the confidence: how far the weight is from flipping), packed in planes. With g the
    gradient of a row with respect to its +-1 weights::

        S <- S + (mean(g^2) - S) / min(t, 100)    "ema": t = how often the row was touched
        S <- S + mean(g^2)                        "adagrad"
        x = lr * 2^(k-1) / (sqrt(S) + 1e-8) * g   (None: x = lr * 2^(k-1) * g)
        v <- clamp(v - round(x))                  rounded stochastically, at most 2^k at once

    Only rows that occurred are read or written. Random numbers are a function of (seed, table, step, row,
    column): the result does not depend on threads or backend.

    Memory in training: ``bits`` bits a weight, the table included, and 32 bits a row with ``adaptivity``.

    A module's "row" scale is trained here too, by row-wise Adagrad at ``scale_lr`` (default: ``lr``).

    Args:
        params: `packedbag.optim.packed_parameters(model)`, or groups of them.
        lr: the step, as a part of the counter's range: a gradient of typical size moves a counter by
            ``lr * 2^(k-1)``.
        bits: k, 2 to 8.
        adaptivity: "ema", "adagrad" or None: how a row's gradients are brought to one size.
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
    defers: ClassVar[bool] = True
    state_options = ("bits", "adaptivity")

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        bits: int = 8,
        adaptivity: str | None = "ema",
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {"lr": lr, "bits": bits, "adaptivity": adaptivity, "scale_lr": scale_lr}
        super().__init__(params, defaults, seed=seed, process_group=process_group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        super().check_options(group)
        if not hasattr(group["bits"], "__index__") or group["bits"] not in self.allowed_bits:
            first, last = self.allowed_bits[0], self.allowed_bits[-1]
            raise ArgumentError("bits", group["bits"], f"in {first}..{last}" if first < last else str(first))
        if group["adaptivity"] not in ADAPTIVITIES:
            raise ArgumentError("adaptivity", repr(group["adaptivity"]), "'ema', 'adagrad' or None")

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return planes (V, W, k - 1) and row words (V,), all 0: confidence 0, never touched."""
        state = {"planes": empty_table((*words.shape, group["bits"] - 1), words.device).zero_()}
        if group["adaptivity"] is not None:
            state["row_state"] = empty_table(words.shape[:1], words.device).zero_()
        return state

    def update_table(self, table: TableStep, sums: RowSums) -> None:
        """Update the counters of all rows of ``sums``, in one pass where the backend can."""
        if not isinstance(table.backend, FusesCounterSteps):
            super().update_table(table, sums)
            return
        table.backend.counter_step(
            *(table.words, table.state["planes"], table.state.get("row_state")),
            *(sums.rows, sums.grad, sums.bags, sums.order, sums.starts),
            factors=sums.factors,
            rule=_rule(table),
        )

    def update_marked(
        self, table: TableStep, gradients: Gradients, factor: torch.Tensor, control: DeviceControl
    ) -> None:
        """Update the counters of all rows: `packedbag.backends.protocol.DeferredBackend.marked_step`."""
        control.backend.marked_step(
            *(table.words, table.state["planes"], table.state.get("row_state")),
            *(gradients.rows, gradients.bags, gradients.grad),
            weights=gradients.weights,
            counts=gradients.counts,
            columns=gradients.columns,
            factor=factor,
            control=control.fields,
            rule=_rule(table),
            row_scale=table.row_scale,
            scale_squares=table.state.get("scale_sum"),
            scale_rate=table.scale_rate,
        )

    def update_rows(self, table: TableStep, rows: Any, grad: Any) -> None:
        """Update the counters of ``rows``: `packedbag.backends.protocol.Backend.counter_update`."""
        planes, row_state = table.state["planes"], table.state.get("row_state")
        table.backend.counter_update(table.words, planes, row_state, rows, grad, **_rule(table))


def _rule(table: TableStep) -> CounterRule:
    options = table.options
    return CounterRule(
        embedding_dim=table.embedding_dim,
        bits=options["bits"],
        rate=float(np.float32(float(options["lr"]) * 2 ** (options["bits"] - 1))),
        adaptivity=options["adaptivity"],
        seed=options["seed"],
        step=table.step,
        table=table.table,
    )
