"""`Shard`: which part of a table that several processes share a packed module holds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shard:
    """Which part of a table a packed module holds. Its random numbers and its row statistics are the table's.

    Attributes:
        table: names the table; the shards of one table have the same on all ranks.
        num_embeddings, embedding_dim: V and D of the table.
        first_row, first_column: where the part begins; the column is a multiple of
            `packedbag.core.value_codes.column_multiple`.
        holders: the ranks of ``process_group`` that hold the columns of these rows, in order of columns. One of them:
            the part has all columns.
        part: this part's position in ``holders``.
        replicated: every rank holds the table, and gradients reach each of them whole.
        process_group: the ranks that step together.
    """

    table: Hashable
    num_embeddings: int
    embedding_dim: int
    first_row: int
    first_column: int
    holders: tuple[int, ...]
    part: int
    replicated: bool
    process_group: Any

    @property
    def is_split(self) -> bool:
        """Whether a row of the table has columns elsewhere."""
        return len(self.holders) > 1

    @property
    def counts(self) -> bool:
        """Whether this part's rows are counted in what the ranks add up: each row of the table once."""
        return self.part == 0 and not self.replicated
