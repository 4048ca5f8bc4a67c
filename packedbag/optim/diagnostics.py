"""`Diagnostics`: what a packed optimizer can say of how its tables are learning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from packedbag.backends.eager_bits import unpack
from packedbag.core import touches
from packedbag.core.totals import FLIPS, ROWS
from packedbag.ops.sink import sink_of

#: Elements of the largest temporary of a histogram.
ELEMENTS = 1 << 22


class Diagnostics:
    """Flips, confidences and rows never touched, by table.

    `packedbag.optim.base.PackedOptimizer` gives the methods that are only declared here.
    """

    state: dict[torch.Tensor, dict[str, Any]]
    _counted: dict[torch.Tensor, tuple[int, int]]

    def _tables(self) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        raise NotImplementedError

    def flip_rate(self) -> list[float]:
        """Return which part of the weights that were updated since the last call have flipped, a number a table.

        Or since `load_state_dict`, if that was later. A weight counts as updated when its row is. Early in training a
        few per cent flip a step; once the rate of learning has gone down, hardly any do: a table that keeps flipping
        has not been let settle. NaN where no row was updated since. On a GPU, waits for the steps under way.
        """
        rates = []
        for anchor, _ in self._tables():
            state = self.state.get(anchor, {})
            if "totals" not in state:
                rates.append(float("nan"))
                continue
            found = state["totals"].tolist()
            flips, rows = found[FLIPS], found[ROWS]
            flips_before, rows_before = self._counted.get(anchor, (0, 0))
            self._counted[anchor] = (flips, rows)
            weights = (rows - rows_before) * state["embedding_dim"]
            rates.append((flips - flips_before) / weights if weights > 0 else float("nan"))
        return rates

    def _count_from_here(self) -> None:
        """Let flip rates be of what follows: a state was loaded."""
        for anchor, _ in self._tables():
            found = self.state.get(anchor, {}).get("totals")
            self._counted[anchor] = (0, 0) if found is None else (int(found[FLIPS]), int(found[ROWS]))

    def untouched_rows(self) -> list[int | None]:
        """Return how many rows were never updated, a number a table; None where the optimizer keeps no row state."""
        counts: list[int | None] = []
        for anchor, _ in self._tables():
            state = self.state.get(anchor, {})
            if not state:
                counts.append(_source(anchor).num_embeddings)
            elif "row_state" in state:
                counts.append(int((state["row_state"] & touches.MASK == 0).sum()))
            else:
                counts.append(None)
        return counts

    def confidence_histogram(self) -> list[torch.Tensor | None]:
        """Return how many weights have each confidence, (2^(k-1),) int64 a table; None without counters.

        The confidence of a weight is how many steps of 1 it is away from the last value with its sign: 0 flips next.
        A heap at the last value is of weights at the end of their range.
        """
        return [
            _histogram(self.state[anchor]["planes"], _source(anchor).embedding_dim)
            if "planes" in self.state.get(anchor, {})
            else None
            for anchor, _ in self._tables()
        ]


def _source(anchor: torch.Tensor) -> Any:
    sink = sink_of(anchor)
    assert sink is not None, "add_param_group admits anchors only"
    return sink.source


def _histogram(planes: torch.Tensor, embedding_dim: int) -> torch.Tensor:
    """Return how many weights have each confidence, from planes (V, W, k - 1)."""
    rows, width, bits = planes.shape
    counts = torch.zeros(1 << bits, dtype=torch.int64)
    most = max(1, ELEMENTS // (width * 32 * max(bits, 1)))
    for start in range(0, rows, most):
        part = planes[start : start + most]
        value = torch.zeros((len(part), width * 32), dtype=torch.int32, device=planes.device)
        for p in range(bits):
            value += unpack(part[:, :, p], torch.int32, 0, 1 << p)
        counts += torch.bincount(value[:, :embedding_dim].reshape(-1), minlength=1 << bits).cpu()
    return counts
