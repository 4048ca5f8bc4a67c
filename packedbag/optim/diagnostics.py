"""`Diagnostics`: what a packed optimizer can say of how its tables are learning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from packedbag.backends.eager_counters import read_counters
from packedbag.core import touches
from packedbag.core.totals import FLIPS, ROWS
from packedbag.core.value_codes import columns_per_counter
from packedbag.ops.sink import PackedSource
from packedbag.optim.deferred_steps import sink_of_anchor

#: Elements of the largest temporary of a histogram.
ELEMENTS = 1 << 22


class Diagnostics:
    """Flips, confidences and rows never touched, by table.

    `packedbag.optim.base.PackedOptimizer` gives the methods that are only declared here.
    """

    state: defaultdict[torch.Tensor, Any]
    _counted: dict[torch.Tensor, tuple[int, int]]

    def _tables(self, groups: list[dict[str, Any]] | None = None) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
        raise NotImplementedError

    def flip_rate(self) -> list[float]:
        """Return which part of the weights that were updated since the last call have flipped, a number a table.

        Or since `load_state_dict`, if that was later. A weight counts as updated when its row is. Early in training a
        few per cent flip a step; once the rate of learning has gone down, hardly any do: a table that keeps flipping
        has not been let settle. NaN where no row was updated since. On a GPU, waits for the steps under way.
        """
        rates = []
        for (anchor, _), (flips, updated) in zip(self._tables(), self.flip_counts(), strict=True):
            flips_before, updated_before = self._counted.get(anchor, (0, 0))
            self._counted[anchor] = (flips, updated)
            since = updated - updated_before
            rates.append((flips - flips_before) / since if since > 0 else float("nan"))
        return rates

    def flip_counts(self) -> list[tuple[int, int]]:
        """Return how many weights have flipped and how many were updated, a pair a table, since its state was made.

        They are part of the state: those of a resumed run are those of one that was never stopped.
        """
        counts = []
        for anchor, _ in self._tables():
            state = self.state.get(anchor, {})
            found = state["totals"].tolist() if "totals" in state else None
            counts.append((found[FLIPS], found[ROWS] * state["embedding_dim"]) if found else (0, 0))
        return counts

    def _count_from_here(self) -> None:
        """Let flip rates be of what follows: a state was loaded."""
        self._counted.update(
            (anchor, counts) for (anchor, _), counts in zip(self._tables(), self.flip_counts(), strict=True)
        )

    def untouched_rows(self) -> list[int | None]:
        """Return how many rows were never updated, a number a table; None where the optimizer keeps no row state."""
        counts: list[int | None] = []
        for anchor, _ in self._tables():
            state = self.state.get(anchor, {})
            if not state:
                counts.append(sink_of_anchor(anchor).source.num_embeddings)
            elif "row_state" in state:
                counts.append(int((state["row_state"] & touches.MASK == 0).sum()))
            else:
                counts.append(None)
        return counts

    def confidence_histogram(self) -> list[torch.Tensor | None]:
        """Return how many counters have each confidence, (2^(k-1),) int64 on the CPU, a table; None without counters.

        The confidence of a weight is how many steps of 1 it is away from the last value with its sign: 0 flips next.
        A heap at the last value is of weights at the end of their range. Of binary numbers, with counters of p * k bits
        in place of k, it is how far they are from the middle.
        """
        return [
            _histogram(self.state[anchor]["planes"], sink_of_anchor(anchor).source)
            if "planes" in self.state.get(anchor, {})
            else None
            for anchor, _ in self._tables()
        ]


def _histogram(planes: torch.Tensor, source: PackedSource) -> torch.Tensor:
    """Return how many counters have each confidence, from planes (V, W, k - 1) and the table's words."""
    rows, width, layers = planes.shape
    columns = columns_per_counter(source.bits_per_value, source.code)
    most = 1 << ((layers + 1) * columns - 1)
    counts = torch.zeros(most, dtype=torch.int64, device="cpu")
    at_once = max(1, ELEMENTS // (width * 32 * max(layers, 1)))
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        value = read_counters(source.words[part], planes[part], source.embedding_dim, columns)
        counts += torch.bincount((value ^ (value >> 31)).reshape(-1), minlength=most).cpu()
    return counts
