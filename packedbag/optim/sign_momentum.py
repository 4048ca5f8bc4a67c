"""`SignMomentum`: a moving average of a weight's gradients decides its sign."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from packedbag.backends.eager_bits import pack_bits, unpack_signs
from packedbag.backends.eager_counters import (
    EPSILON,
    halfwords,
    row_statistic,
    signed_steps,
    state_words,
    touched,
)
from packedbag.backends.eager_sums import root
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import BITS_PER_WORD
from packedbag.core.totals import FIELDS, FLIPS, ROWS
from packedbag.ops.bridge import to_torch
from packedbag.ops.memory import empty_table
from packedbag.optim.base import PackedOptimizer, singles
from packedbag.optim.table_step import TableStep

STATE_DTYPES = {"float32": torch.float32, "int8": torch.int8}
#: An int8 average is kept in units of 1 / 128: a power of two, so that converting it is exact.
QUANTA = 128
LARGEST = 127
#: The statistic takes in at least a hundredth of the row's own mean square, so a finite gradient is at most
#: 10 * sqrt(D) <= 7241 times its root; only sums that overflowed are larger, and they must not stay infinite.
LIMIT = 8192.0


class SignMomentum(PackedOptimizer):
    r"""Flips a weight when a moving average of its gradients points clearly against it: Bop, row by row.

    With g the gradient of a row with respect to its +-1 weights w, and m the weights' averages, 0 at first::

        S <- S + (mean(g^2) - S) / min(t, 100)    t = how often the row was touched
        m <- m + lr * (g / (sqrt(S) + 1e-8) - m)
        w <- -w where |m| > threshold and sign(m) = sign(w)

    A positive average says that the loss grows with w, so that w = +1 flips. The average stays: the weight flips back
    once it lies beyond the threshold on the other side, for which gradients of typical size and one sign need about
    ``2 * threshold / lr`` touches.

    Bop averages g itself, whose size differs between tables, layers and batches, and with it the right threshold.
    Here g is divided by the root of its row's mean square, as in `CounterSGD`: one threshold serves all tables.

    Only rows that occurred are read or written: an average is over the touches of a row, not over steps, and decays
    only then. ``threshold=0`` lets the sign of the average decide alone.

    Memory in training: 33 bits a weight, the table included, or 9 with ``state_dtype="int8"``, and 32 bits a row;
    D is rounded up to a multiple of 32. `CounterSGD` takes at most 8: this is the literature's rule, to compare with.

    An int8 average is kept in units of 1/128, saturates at +-127/128, and is rounded stochastically. The random
    numbers are a function of (seed, table, step, row, column), and float32 needs none: the result does not depend on
    threads or backend. Rounding adds a variance of at most 1/256^2 a touch, less than that of gradients of
    typical size, lr^2, where lr > 1/256; below that, prefer float32.

    A module's "row" scale is trained here too, by row-wise Adagrad at ``scale_lr`` (default: ``lr``).

    Args:
        params: `packedbag.optim.packed_parameters(model)`, or groups of them.
        lr: the adaptivity rate gamma of Bop, 0 to 1: the part of a new gradient in the average.
        threshold: tau of Bop, >= 0, below 127/128 with "int8". Larger ones flip fewer weights.
        state_dtype: "float32" or "int8": how averages are kept.
        scale_lr: rate of row scales; None follows ``lr``.
        seed: of the stochastic rounding, 0 <= seed < 2^64; None draws one from torch's generator.
        process_group: whose ranks' gradients are gathered in `step`; None: that of a surrounding DDP.

    Source:
        Helwegen et al., "Latent Weights Do Not Exist: Rethinking Binarized Neural Network Optimization",
        arXiv:1906.02107 (Bop). Diode keeps an average as well, of the signs of gradients: Guo, Guo, Meinel, Yang,
        "Enhancing Optimization Robustness in 1-bit Neural Networks through Stochastic Sign Descent", ECCV 2024.

    >>> from packedbag import PackedEmbeddingBag
    >>> module = PackedEmbeddingBag(100, 32)
    >>> optimizer = SignMomentum([module.anchor], lr=0.1, state_dtype="int8", seed=0)
    >>> module(torch.tensor([[1, 2]])).sum().backward()
    >>> optimizer.step()
    """

    #: It has no kernel of its own on a GPU, so that its steps wait for it.
    defers: ClassVar[bool] = False
    state_options = ("state_dtype",)

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        threshold: float = 0.05,
        state_dtype: str = "float32",
        scale_lr: float | None = None,
        seed: int | None = None,
        process_group: Any = None,
    ) -> None:
        defaults = {"lr": lr, "threshold": threshold, "state_dtype": state_dtype, "scale_lr": scale_lr}
        super().__init__(params, defaults, seed=seed, process_group=process_group)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raise `ArgumentError` for an option of a parameter group that is not allowed."""
        super().check_options(group)
        if float(group["lr"]) > 1:
            raise ArgumentError("lr", group["lr"], "in 0..1, the part of a new gradient in the average")
        if group["state_dtype"] not in STATE_DTYPES:
            raise ArgumentError("state_dtype", repr(group["state_dtype"]), "'float32' or 'int8'")
        most = LARGEST / QUANTA if group["state_dtype"] == "int8" else LIMIT
        if not 0 <= float(group["threshold"]) < most:
            raise ArgumentError(
                "threshold",
                group["threshold"],
                f">= 0 and below {most:g}, the largest average with state_dtype={group['state_dtype']!r}",
            )

    def new_state(self, words: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return averages (V, 32 W), whose tail stays 0, and row words (V,), all 0: never touched."""
        dtype = STATE_DTYPES[group["state_dtype"]]
        rows, width = words.shape
        averages = empty_table((rows, width * BITS_PER_WORD * dtype.itemsize // 4), words.device).view(dtype)
        return {
            "averages": averages.zero_(),
            "row_state": empty_table((rows,), words.device).zero_(),
            "totals": torch.zeros(FIELDS, dtype=torch.int64, device=words.device),
        }

    def update_rows(self, table: TableStep, rows: Any, grad: Any) -> None:
        """Update averages and signs of ``rows``, in torch's operations on whatever memory the backend has."""
        rows, grad = to_torch(rows), to_torch(grad)
        words, averages, row_state = map(to_torch, (table.words, table.state["averages"], table.state["row_state"]))
        dim, lr, threshold = table.embedding_dim, *singles(table.options["lr"], table.options["threshold"])
        before = row_state.index_select(0, rows)
        code = touched(before, rows, seed=table.options["seed"], step=table.step, table=table.table)
        statistic = row_statistic(before, code, grad, "ema")
        row_state.index_copy_(0, rows, state_words(statistic, code))
        # A NaN is a sum that overflowed both ways: it has no direction.
        x = (grad / (root(statistic) + EPSILON).unsqueeze(1)).nan_to_num_(0.0).clamp_(-LIMIT, LIMIT)
        kept = averages.index_select(0, rows)
        m = kept[:, :dim].to(torch.float32)
        if averages.dtype == torch.int8:
            m = m / QUANTA
        # Not lerp: its order of operations is torch's own business, and may fuse some.
        m = m + (x - m) * lr
        if averages.dtype == torch.int8:
            random = halfwords(rows, dim, seed=table.options["seed"], step=table.step, table=table.table)
            m = signed_steps(m * QUANTA, random, QUANTA.bit_length() - 1).clamp_(-LARGEST, LARGEST)
            kept[:, :dim] = m
            m = m.to(torch.float32) / QUANTA  # what is kept decides
        else:
            kept[:, :dim] = m
        averages.index_copy_(0, rows, kept)
        signs = unpack_signs(words.index_select(0, rows))[:, :dim]
        flips = signs * m > threshold
        words.index_copy_(0, rows, pack_bits((signs > 0) ^ flips))
        totals = to_torch(table.state["totals"])
        totals[FLIPS] += flips.sum()
        totals[ROWS] += len(rows)
