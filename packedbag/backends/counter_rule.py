"""`CounterRule`: how the counters of a table change in one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CounterRule:
    """How counters change in one step: DESIGN 2.1, with decay and votes as docs/design/decay.md defines them.

    A counter v is of one column: its sign is in the words, its confidence (v, or -1 - v where v is negative) in the
    k - 1 planes. Or it is of p neighbouring columns: then the p highest of the p * k bits of v + 2^(pk - 1) are in the
    words, the others in the planes, p in each, the lowest in plane 0. Of p bits, column j has bit j.

    Attributes:
        embedding_dim: D, columns of the table, or of the part of it that is updated.
        bits: k, bits a column, 1 to 8.
        rate: ``float32(lr * 2 ** (counter_bits - 1))``, exactly; with votes, the weight of a vote.
        adaptivity: "ema", "adagrad" or None.
        decay: a float32 >= 0, how fast confidences shrink; 0 for not at all.
        threshold: a float32; >= 0: a gradient, divided by the root of its row's statistic, votes where its size is
            above it. Negative: counters.
        spacing, group: of the `packedbag.core.thermometer.centers` that counters decay toward; ``group`` is 1 where
            a counter has several columns.
        seed: 0 <= seed < 2^64.
        step: updates done before this one.
        table: position in the optimizer.
        first_row, first_column: where a shard begins in its table: random numbers are those of the table's rows and
            columns. The column is a multiple of 32, and of 8 counters.
        columns_per_counter: p: 1, 2, 4 or 8, with ``p * bits`` at most 8. Gradients have one column a counter.
    """

    embedding_dim: int
    bits: int
    rate: float
    adaptivity: str | None
    decay: float
    threshold: float
    spacing: float
    group: int
    seed: int
    step: int
    table: int
    first_row: int = 0
    first_column: int = 0
    columns_per_counter: int = 1

    @property
    def counters(self) -> int:
        """Counters of a row."""
        return self.embedding_dim // self.columns_per_counter

    @property
    def counter_bits(self) -> int:
        """Bits of a counter."""
        return self.bits * self.columns_per_counter

    @property
    def first_counter(self) -> int:
        """Where a shard begins in its table, in counters."""
        return self.first_column // self.columns_per_counter
