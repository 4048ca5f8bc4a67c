"""What Arrow and Parquet files of packed tables share: their columns, and what their schema says of the table.

``id`` int64, ``words`` fixed-size binary of 4 W bytes, and ``scale`` float32 where rows have scales. The schema's
metadata have one entry, ``packedbag``: the JSON of `packedbag.io.description`, and ``scale_value`` of a table's scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from packedbag.core.errors import DataError, MissingExtraError
from packedbag.core.layout import words_per_row
from packedbag.io.description import describe, described, table_scale
from packedbag.io.stored import Opener, StoredTable, as_json, from_json
from packedbag.table import PackedTable

KEY = b"packedbag"


def library(what: str) -> Any:
    """Return pyarrow.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError(what, "pyarrow", "io") from None
    return pa


def schema_of(pa: Any, table: PackedTable, name: str) -> Any:
    """Return the schema of a table's rows; its metadata describe the table."""
    said = describe(table, name, with_scale=True)
    fields = [pa.field("id", pa.int64(), nullable=False)]
    fields.append(pa.field("words", pa.binary(4 * table.words.shape[1]), nullable=False))
    if said["scale"] == "row":
        fields.append(pa.field("scale", pa.float32(), nullable=False))
    return pa.schema(fields, metadata={KEY: as_json(said, "metadata").encode()})


def batch_of(pa: Any, table: PackedTable, schema: Any, start: int, stop: int) -> Any:
    """Return rows ``start`` to ``stop`` as a record batch; the words are not copied."""
    words = np.ascontiguousarray(table.words[start:stop], "<u4")
    columns = [pa.array(np.arange(start, stop, dtype=np.int64))]
    columns.append(pa.Array.from_buffers(schema.field("words").type, stop - start, [None, pa.py_buffer(words)]))
    if len(schema) > 2:
        columns.append(pa.array(np.asarray(table.scale)[start:stop]))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def stored_of(pa: Any, path: Path, schema: Any, rows: int, arrays: Opener) -> StoredTable:
    """Return what the schema of a file of ``rows`` rows says of its table.

    Raises:
        DataError: it is no packed table's, or contradicts its own metadata.
    """
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise DataError(path, None, "holds no packed table: its schema has no packedbag metadata")
    said = from_json(path, text, "what its schema says of the table")
    stored = described(path, said, arrays)
    columns = {"id": pa.int64(), "words": pa.binary(4 * words_per_row(stored.embedding_dim))}
    if stored.scale_kind == "row":
        columns["scale"] = pa.float32()
    try:
        seen = {field.name: field.type for field in schema}
    except UnicodeDecodeError as error:
        raise unreadable(path, error) from None
    if seen != columns or len(schema) != len(columns):
        raise DataError(path, None, f"has columns {_shown(seen)}, not {_shown(columns)}", "Export the table again.")
    if rows != stored.num_embeddings:
        raise DataError(path, None, f"has {rows} rows; its schema says {stored.num_embeddings}", "It was cut short.")
    if stored.scale_kind == "table":
        table_scale(path, said)
    return stored


def scale_in_schema(path: Path, schema: Any) -> Any:
    """Return the one scale of a table, which `stored_of` has checked."""
    return table_scale(path, from_json(path, schema.metadata[KEY], "its schema"))


def bytes_of(column: Any, width: int) -> Any:
    """Return the values of a column without nulls as (n, ``width``) bytes, not copied."""
    buffer = column.buffers()[1]
    if buffer is None or column.null_count:
        return np.empty((0, width), np.uint8)
    first = column.offset * width
    return np.frombuffer(buffer, np.uint8)[first : first + len(column) * width].reshape(-1, width)


def unreadable(path: Path, error: Exception) -> DataError:
    """Return what is said of a file that pyarrow cannot read."""
    first = (str(error).splitlines() or [""])[0]
    return DataError(path, None, f"cannot be read by pyarrow ({first:.200})", "Copy or export it again.")


def _shown(columns: dict[str, Any]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())
