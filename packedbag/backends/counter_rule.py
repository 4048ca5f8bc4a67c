"""`CounterRule`: how the counters of a table change in one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CounterRule:
    """How k-bit counters change in one step: DESIGN 2.1, with decay and votes as docs/design/decay.md defines them.

    Attributes:
        embedding_dim: D, columns of the table, or of the part of it that is updated.
        bits: k, 1 to 8.
        rate: ``float32(lr * 2 ** (bits - 1))``, exactly; with votes, the weight of a vote.
        adaptivity: "ema", "adagrad" or None.
        decay: a float32 >= 0, how fast confidences shrink; 0 for not at all.
        threshold: a float32; >= 0: a gradient, divided by the root of its row's statistic, votes where its size is
            above it. Negative: counters.
        spacing, group: of the `packedbag.core.thermometer.centers` that counters decay toward.
        seed: 0 <= seed < 2^64.
        step: updates done before this one.
        table: position in the optimizer.
        first_row, first_column: where a shard begins in its table: random numbers are those of the table's rows and
            columns. The column is a multiple of 32.
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
