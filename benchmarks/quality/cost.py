"""What tables hold, counted from live tensors: bytes, bits a weight and bits a row, in training and in serving."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.tables.table import Table

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Bytes of all tables of a run.

    Args:
        weights: sum of V * D; ``rows``: sum of V.
        table_bytes: of weights and scales as training holds them.
        state_bytes: of the optimizers' state for them: counters, row statistics, moments; those of scales included.
        serving_bytes: of weights and scales as serving needs them.
    """

    weights: int
    rows: int
    table_bytes: int
    state_bytes: int
    serving_bytes: int

    def plain(self) -> dict[str, float]:
        """Return bytes, and bits a weight and a row, training and serving."""
        training = 8 * (self.table_bytes + self.state_bytes)
        serving = 8 * self.serving_bytes
        return {
            **vars(self),
            "training_bits": training / self.weights,
            "serving_bits": serving / self.weights,
            "training_bits_row": training / self.rows,
            "serving_bits_row": serving / self.rows,
        }


def count(tables: Sequence[Table], optimizer: Any, dense: Any) -> Cost:
    """Count the tensors that live after a step.

    Args:
        tables: of the model.
        optimizer: of the tables, or None.
        dense: the perceptron's optimizer, which trains scales too.
    """
    states = [] if optimizer is None else list(optimizer.state.values())
    states += [dense.state[scale] for table in tables for scale in table.scales() if scale in dense.state]
    return Cost(
        weights=sum(table.rows * table.dim for table in tables),
        rows=sum(table.rows for table in tables),
        table_bytes=sum(tensor.nbytes for table in tables for tensor in table.held()),
        state_bytes=sum(tensor.nbytes for tensor in _tensors(states)),
        serving_bytes=sum(table.serving_bytes() for table in tables),
    )


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most memory that this process held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak start from what is held now: reading data may take more than training on them does."""
    with contextlib.suppress(OSError):  # some containers forbid it; the peak is then that of the whole process
        CLEAR.write_text("5")


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
