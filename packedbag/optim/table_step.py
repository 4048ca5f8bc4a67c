"""`TableStep`: one table in one step of a packed optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packedbag.backends.protocol import Backend
from packedbag.core.value_codes import columns_per_counter
from packedbag.ops.shard import Shard


@dataclass
class TableStep:
    """One table in one step: what `PackedOptimizer.update_table` works on, in the backend's own arrays.

    Attributes:
        words: (V, W).
        embedding_dim: D.
        bits_per_value: columns that make one value.
        code: how: of `packedbag.core.value_codes.CODES`.
        state: the arrays of `PackedOptimizer.new_state`.
        options: the parameter group.
        step: updates done before this one.
        table: the table's position in the optimizer.
        row_scale: (V,) float32, a torch tensor, or None.
        shard: which part of a table these words are; None: all of it.
    """

    backend: Backend
    words: Any
    state: dict[str, Any]
    embedding_dim: int
    bits_per_value: int
    code: str
    options: dict[str, Any]
    step: int
    table: int
    row_scale: Any = None
    shard: Shard | None = None

    @property
    def columns_per_counter(self) -> int:
        """Columns that one counter drives."""
        return columns_per_counter(self.bits_per_value, self.code)

    @property
    def scale_rate(self) -> float:
        """The learning rate of row scales."""
        rate = self.options["scale_lr"]
        return float(self.options["lr"] if rate is None else rate)
