"""Gradients of rows in stock torch operations: who receives one, and the sum over a row's occurrences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from packedbag.backends.eager_bits import unpack_bits
from packedbag.backends.eager_sums import sum_in_order
from packedbag.backends.reference import RUN

Tensor = torch.Tensor


def first_to_decide(words: Tensor, starts: Tensor) -> Tensor:
    """Return, as bits, the columns in which each entry is the first of its bag to hold the bag's maximum.

    Args:
        words: (k, W) int32, the rows of whole bags.
        starts: (b + 1,) int64, the end included.

    Returns:
        (k, W) int32; the tail bits are unspecified.
    """
    lengths = starts.diff()
    bag = torch.repeat_interleave(lengths, output_size=len(words))
    place = (torch.arange(len(words), device=words.device) - starts[bag]).unsqueeze(1)
    # The OR of a bag's words up to each entry, by doubling: log2(longest) steps on packed words.
    so_far = words.clone()
    distance = 1
    while distance < int(lengths.max()):
        so_far[distance:] |= torch.where(place[distance:] >= distance, so_far[:-distance], 0)
        distance *= 2
    takes = words.clone()
    takes[1:] &= ~torch.where(place[1:] > 0, so_far[:-1], 0)
    filled = lengths > 0
    first, last = starts[:-1][filled], starts[1:][filled] - 1
    takes[first] |= ~so_far[last]  # the maximum is -1 where no entry has the bit
    return takes


@dataclass(frozen=True)
class Occurrences:
    """What the occurrences of rows contribute to their gradients; see `Backend.sum_rows` for the arguments."""

    grad: Tensor
    bags: Tensor
    order: Tensor
    weights: Tensor | None
    scale: Tensor | None
    counts: Tensor | None
    columns: Tensor | None

    def gradients(self, places: Tensor, rows: Tensor) -> Tensor:
        """Return the contributions of the occurrences at ``places`` of the order, (A, D), to ``rows`` (A,)."""
        occurrence = self.order[places]
        bag = self.bags[occurrence]
        g = self.grad.index_select(0, bag)
        if self.weights is not None:
            g = g * self.weights[occurrence].unsqueeze(1)
        if self.scale is not None:
            g = g * self.scale[rows].unsqueeze(1)
        if self.counts is not None:
            g = g / self.counts[bag].unsqueeze(1)
        if self.columns is not None:
            takes = unpack_bits(self.columns.index_select(0, occurrence))[:, : g.shape[1]]
            g = torch.where(takes, g, 0.0)
        return g


class Runs:
    """The occurrences of rows in runs of 64: run i is ``lengths[i]`` places from ``starts[i]``, of row ``rows[i]``.

    Attributes:
        ends: (u + 1,) int64; the runs of row u are ``ends[u]`` to ``ends[u + 1]``.
    """

    def __init__(self, starts: Tensor) -> None:
        count = (starts.diff() + RUN - 1) // RUN
        self.ends = torch.nn.functional.pad(count.cumsum(0), (1, 0))
        self.rows = torch.repeat_interleave(count)
        place_in_row = torch.arange(len(self.rows), device=starts.device) - self.ends[self.rows]
        self.starts = starts[self.rows] + place_in_row * RUN
        self.lengths = (starts[self.rows + 1] - self.starts).clamp(max=RUN)

    def add(self, total: Tensor, occurrences: Occurrences, rows: slice, span: slice) -> None:
        """Add the runs in ``span``, which belong to ``rows``, to ``total`` (rows, D), each summed from 0, in order."""
        of_row = self.rows[span]
        sums = torch.zeros((len(of_row), total.shape[1]), dtype=torch.float32, device=total.device)
        sum_in_order(
            sums,
            self.starts[span],
            self.lengths[span],
            lambda places, runs: occurrences.gradients(places, of_row[runs]),
        )
        ends = self.ends[rows.start : rows.stop + 1].clamp(span.start, span.stop) - span.start
        sum_in_order(total, ends[:-1], ends.diff(), lambda runs, _: sums[runs])
