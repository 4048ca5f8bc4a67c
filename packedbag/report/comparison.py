"""Kinds of tables side by side: quality and memory, for the table at the end and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Rows of the one large table whose step is measured as well: a data set for trying out has small tables.
LARGE_ROWS = 1_000_000
#: Ids in a bag of that table's batch.
LARGE_BAG = 20


@dataclass
class Line:
    """One kind of table.

    Quality is that of the test rows, None for a kind that was not trained. Bytes are of the tables alone:
    the perceptron is the same for every kind. ``untouched_rows`` is known of packed tables alone.
    """

    kind: str
    auc: float | None
    log_loss: float | None
    table_bytes: int
    state_bytes: int
    peak_bytes: int | None = None
    large_peak_bytes: int | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    valid_auc: float | None = None
    seconds: float | None = None
    untouched_rows: int | None = None


@dataclass
class Comparison:
    """All lines, and what they were measured on: the rows of each table by field, and of each part of the data.

    ``rows`` is None where rows were not counted: ids are hashed, and the file was not read ahead.
    """

    dataset: str
    embedding_dim: int
    tables: dict[str, int]
    rows: dict[str, int] | None
    settings: dict[str, Any]
    lines: list[Line]

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; what was not measured is null."""
        return asdict(self)
