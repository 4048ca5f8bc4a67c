"""What decides the result of a training run, apart from the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.core.layout import check_embedding_dim
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code, check_counter_bits
from packedbag.recsys.schedule import SCHEDULES

#: Settings that a resumed run may change. ``patience`` says when to stop; so does ``epochs``, which also stretches the
#: schedule: from the checkpoint on, rates are those of a run of that many epochs.
FREE = ("epochs", "patience")

#: Units of a hidden layer, at most: far more than any machine has memory for, and no overflow in torch.
MAX_WIDTH = 2**31 - 1

#: Steps between checkpoints; the end of an epoch is one anyway.
CHECKPOINT_STEPS = 500
#: Seconds after which processes of a run that wait for one that is gone give up, unless told otherwise.
TIMEOUT = 300


@dataclass(frozen=True)
class Settings:
    """The settings of a run; the defaults were tuned on the validation part of movielens-100k.

    Args:
        embedding_dim: D of every table.
        hidden: widths of the perceptron's hidden layers.
        dropout: share of hidden units that is left out in training.
        batch_size: rows of a step.
        epochs: passes over the training rows at most.
        patience: epochs without a better validation AUC after which training ends.
        lr: rate of the dense part, AdamW.
        weight_decay: of the dense part.
        packed_lr: rate of the packed tables; None: what `packedbag.optim.CounterSGD` has for so many bits.
        bits: k, the bits of a packed weight in training.
        bits_per_value: of packed tables: columns that make one value; D is a multiple of it.
        code: how they make it: "thermometer", their mean, or "binary", a number of so many bits.
        decay: how fast the packed tables' confidences shrink; None as for ``packed_lr``.
        fp32_lr: rate of the twin's tables, `torch.optim.Adagrad` on sparse gradients.
        schedule: of all rates: "cosine", to 0 over ``epochs``, or "constant".
        seed: of the initial weights, the order of rows, dropout and stochastic rounding.
    """

    embedding_dim: int = 128
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.4
    batch_size: int = 512
    epochs: int = 12
    patience: int = 3
    lr: float = 1e-3
    weight_decay: float = 0.0
    packed_lr: float | None = None
    bits: int = 2
    bits_per_value: int = 4
    code: str = "binary"
    decay: float | None = None
    fp32_lr: float = 0.02
    schedule: str = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        check_embedding_dim(self.embedding_dim)
        check_bits_per_value(self.bits_per_value, self.embedding_dim, "mean", "float32")
        check_code(self.code, self.bits_per_value)
        check_counter_bits(self.bits, self.bits_per_value, self.code)
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, getattr(self, name), "at least 1")
        if self.batch_size < 2:
            raise ArgumentError("batch_size", self.batch_size, "at least 2: batch norm needs two rows")
        for size in self.hidden:
            if size < 1:
                raise ArgumentError("hidden", size, "at least 1")
            if size > MAX_WIDTH:
                raise ArgumentError("hidden", size, f"at most {MAX_WIDTH}")
        for name in ("lr", "weight_decay", "packed_lr", "decay", "fp32_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < math.inf:
                raise ArgumentError(name, rate, "a finite number >= 0")
        if not 0 <= self.dropout < 1:
            raise ArgumentError("dropout", self.dropout, "in [0, 1)")
        if self.schedule not in SCHEDULES:
            raise ArgumentError("schedule", repr(self.schedule), " or ".join(map(repr, SCHEDULES)))
        if not 0 <= self.seed < 2**63:
            raise ArgumentError("seed", self.seed, "in 0..2**63 - 1")

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def check_same(self, saved: dict[str, Any], path: object) -> None:
        """Raise `CheckpointError` where a checkpoint's settings differ from these."""
        for name, value in self.plain().items():
            if name not in FREE and saved.get(name) != value:
                raise CheckpointError(
                    path,
                    f"the checkpoint was made with {name}={saved.get(name)}, this run has {name}={value}",
                    "Pass the same settings, or start without --resume.",
                )
