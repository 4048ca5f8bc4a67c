"""What one epoch came to: quality, cost, rates, and what the packed tables did in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from packedbag.optim.base import PackedOptimizer
from packedbag.recsys.metrics import Score


@dataclass(frozen=True)
class TableReport:
    """What a packed table did.

    ``flip_rate``: which part of the weights that the epoch updated flipped, an update a step counted one by one; None
    where it updated none. ``untouched_rows``: rows that no step has updated since the run began. ``confidences``: how
    many weights have each confidence, from 0, which flips next.
    """

    flip_rate: float | None
    untouched_rows: int | None
    confidences: list[int] | None


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    ``number`` counts from 1; ``seconds`` are of training, validation left out; ``lr`` and ``table_lr`` are the rates of
    its last step; ``flip_rate`` is that of all tables together; ``tables`` is by field, and empty where tables are not
    packed.
    """

    number: int
    steps: int
    loss: float
    valid: Score
    best: bool
    seconds: float
    samples_per_second: float
    lr: float
    table_lr: float
    resident_bytes: int
    flip_rate: float | None
    tables: dict[str, TableReport]

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it: what is not a finite number is null."""
        plain: dict[str, Any] = {
            "epoch": self.number,
            "steps": self.steps,
            "loss": _finite(self.loss),
            "valid_auc": self.valid.auc,
            "valid_log_loss": self.valid.log_loss,
            "best": self.best,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "lr": self.lr,
            "table_lr": self.table_lr,
            "resident_bytes": self.resident_bytes,
        }
        if self.tables:
            plain["flip_rate"] = self.flip_rate
            plain["tables"] = {name: vars(table) for name, table in self.tables.items()}
        return plain


def flip_counts(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    """Return `PackedOptimizer.flip_counts` as a checkpoint holds it; an optimizer that is not packed has none."""
    return [list(counts) for counts in optimizer.flip_counts()] if isinstance(optimizer, PackedOptimizer) else []


def table_reports(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
) -> tuple[float | None, dict[str, TableReport]]:
    """Return the flip rate of all tables together, and what each did between two `flip_counts`."""
    if not isinstance(optimizer, PackedOptimizer):
        return None, {}
    changes = [(f1 - f0, u1 - u0) for (f0, u0), (f1, u1) in zip(before, after, strict=True)]
    tables = {
        name: TableReport(rate_of(*change), untouched, None if histogram is None else histogram.tolist())
        for name, change, untouched, histogram in zip(
            names, changes, optimizer.untouched_rows(), optimizer.confidence_histogram(), strict=True
        )
    }
    return rate_of(sum(f for f, _ in changes), sum(u for _, u in changes)), tables


def untouched_rows(optimizer: torch.optim.Optimizer) -> int | None:
    """Return how many rows of all packed tables no step has updated; None where tables are not packed."""
    if not isinstance(optimizer, PackedOptimizer):
        return None
    counts = [count for count in optimizer.untouched_rows() if count is not None]
    return sum(counts) if counts else None


def rate_of(flips: int, updated: int) -> float | None:
    """Return which part of the updated weights flipped; None where none was."""
    return flips / updated if updated else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
