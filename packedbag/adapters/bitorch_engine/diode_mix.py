"""`DiodeMix`: bitorch-engine's optimizer of that name, for bits packed into words and for floats."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.mixed import TrainsFloatsToo, relative_rate
from packedbag.backends.counter_rule import CounterRule
from packedbag.backends.eager_bits import pack_bits, unpack_signs
from packedbag.backends.protocol import Backend
from packedbag.core.errors import ArgumentError
from packedbag.core.totals import FIELDS, FLIPS, ROWS
from packedbag.ops.bridge import to_torch
from packedbag.ops.memory import empty_table
from packedbag.optim.base import PackedOptimizer, singles
from packedbag.optim.counter_steps import CounterSteps, new_counters
from packedbag.optim.row_sums import RowSums
from packedbag.optim.table_step import TableStep

FLOAT_BITS = 32
STATE_BITS = (4, 8, FLOAT_BITS)
#: The most that a counter's decay takes at once, as a part of it: see `CounterSGD`.
LARGEST_DECAY = 1 / 8


class DiodeMix(TrainsFloatsToo, CounterSteps):
    r"""A moving average of the signs of a weight's gradients decides its bit; float parameters take Adam's steps.

    With g the gradient of a row with respect to its +-1 weights, and a the weights' averages, 0 at first::

        a <- a + (1 - beta2) * (lr * sign(g) - a)
        w <- -1 where a > 0, +1 where a < 0

    A positive average says that the loss grows with w. Only rows that occurred are read or written; an average is
    over the touches of its row. `state_bits` says how it is kept: 32, as a float. 8 or 4, as the k-bit counter of
    `CounterSGD`, in units of ``lr / 2^(k-1)`` and rounded stochastically, whose sign is the bit and which the table
    already holds: a vote counts ``2^(k-1) * (1 - beta2)``, and each touch takes ``1 - beta2`` of the counter, at most
    1/8. A scheduler's ``lr`` counts in relation to the first one, so that later votes weigh less, as in a float.
    Rounding lets a counter of no confidence change its sign by chance, in ``(1 - beta2) / 2`` of touches that have
    no vote; a float stays at 0.

    Floats: the averages of Adam in ``dtype``, whose root is not corrected before ``eps`` is added, and weight decay
    after the step, in proportion to ``lr``. On the bits ``eps`` and ``weight_decay`` have no effect: a bit has no
    size.

    Memory in training: ``state_bits`` bits a weight, the table included, or 33 for 32. The original keeps 40, and
    floats of 32 bits while it updates.

    Args:
        params: ``model.parameters()``, or groups: anchors of packed modules, and floats.
        lr: the learning rate of floats. The bits do not depend on its size, only on how it changes.
        betas: of the averages; the second one is also that of the bits: the larger, the longer is the memory.
        eps: added to the root of the average of squares, >= 0.
        weight_decay: of floats, >= 0.
        correct_bias: whether the step size makes up for averages that begin at 0.
        dtype: of the averages of floats.
        state_bits: 32, 8 or 4.
        seed: of the stochastic rounding, 0 <= seed < 2^64; None draws one from torch's generator.
        process_group: whose ranks' gradients are gathered in `step`; None: that of a surrounding DDP, which also
            averages those of floats.
        scale_lr: rate of row scales; None follows ``lr``.

    Source:
        https://github.com/GreenBitAI/bitorch-engine, optim. The average of signs: Guo, Guo, Meinel, Yang, "Enhancing
        Optimization Robustness in 1-bit Neural Networks through Stochastic Sign Descent", ECCV 2024.

    >>> from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
    >>> model = torch.nn.Sequential(BinaryEmbeddingBag(num_embeddings=100, embedding_dim=32), torch.nn.Linear(32, 1))
    >>> optimizer = DiodeMix(model.parameters(), lr=1e-3, betas=(0.9, 0.99), seed=0)
    >>> model(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    state_options = ("state_bits",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        dtype: torch.dtype = torch.float32,
        *,
        state_bits: int = 8,
        seed: int | None = None,
        process_group: Any = None,
        scale_lr: float | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        defaults |= {"dtype": dtype, "state_bits": state_bits, "scale_lr": scale_lr, "first_lr": None}
        PackedOptimizer.__init__(self, params, defaults, seed=seed, process_group=process_group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        if not isinstance(group["state_bits"], int) or group["state_bits"] not in STATE_BITS:
            raise ArgumentError("state_bits", repr(group["state_bits"]), "32, 8 or 4")
        super().check_options(group)

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return averages (V, 32 W) float32, or planes (V, W, k - 1), and totals, all 0."""
        if group["state_bits"] != FLOAT_BITS:
            return new_counters(words, group["state_bits"], row_words=False)
        rows, width = words.shape
        averages = empty_table((rows, width * FLOAT_BITS), words.device).view(torch.float32)
        totals = torch.zeros(FIELDS, dtype=torch.int64, device=words.device)
        return {"averages": averages.zero_(), "totals": totals}

    def update_table(self, table: TableStep, sums: RowSums) -> None:
        """Update all rows of ``sums``: counters in the backend's kernel, float averages chunk by chunk."""
        if table.options["state_bits"] == FLOAT_BITS:
            PackedOptimizer.update_table(self, table, sums)
        else:
            super().update_table(table, sums)

    def update_rows(self, table: TableStep, rows: Any, grad: Any) -> None:
        """Update ``rows`` with their gradients: float averages in torch's operators, on whatever device."""
        if table.options["state_bits"] != FLOAT_BITS:
            super().update_rows(table, rows, grad)
            return
        rows, grad = to_torch(rows), to_torch(grad)
        words, averages = to_torch(table.words), to_torch(table.state["averages"])
        dim, options = table.embedding_dim, table.options
        votes, rate = singles(options["lr"], 1 - float(options["betas"][1]))
        kept = averages.index_select(0, rows)
        a = kept[:, :dim]
        # A NaN is a sum that overflowed both ways: it has no sign. Not lerp, whose order of operations is torch's.
        a += (torch.sign(grad).nan_to_num_(0.0) * votes - a) * rate
        averages.index_copy_(0, rows, kept)
        before = unpack_signs(words.index_select(0, rows))[:, :dim] > 0
        after = torch.where(a == 0, before, a < 0)
        words.index_copy_(0, rows, pack_bits(after))
        totals = to_torch(table.state["totals"])
        totals[FLIPS] += (before != after).sum()
        totals[ROWS] += len(rows)

    def rule(self, table: TableStep) -> CounterRule:
        """Return how the counters of ``table`` change in this step."""
        options = table.options
        (decay,) = singles(min(LARGEST_DECAY, 1 - float(options["betas"][1])))
        part = relative_rate(options)
        (rate,) = singles(2 ** (options["state_bits"] - 1) * decay * part)
        return CounterRule(
            embedding_dim=table.embedding_dim,
            bits=options["state_bits"],
            rate=rate,
            adaptivity=None,
            decay=decay if part else 0.0,  # which rounds: at a rate of 0 no bit may flip, as under a float
            threshold=0.0,
            spacing=0.0,
            group=table.bits_per_value,
            seed=options["seed"],
            step=table.step,
            table=table.table,
        )

    def _is_deferred(self, devices: dict[torch.device, Backend]) -> bool:
        return super()._is_deferred(devices) and all(g["state_bits"] != FLOAT_BITS for g in self.param_groups)
