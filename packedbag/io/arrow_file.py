"""``.arrow``: an Arrow IPC file of one record batch, whose words are mapped; see `packedbag.io.arrow_rows`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packedbag.core.errors import DataError
from packedbag.io.arrow_rows import batch_of, bytes_of, library, scale_in_schema, schema_of, stored_of, unreadable
from packedbag.io.atomic import replacing
from packedbag.io.description import only
from packedbag.io.stored import Arrays, StoredTable
from packedbag.table import PackedTable

WHAT = "An Arrow file"


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table in one atomic step; its words are not copied, its ids take 8 bytes a row meanwhile.

    Args:
        path: the file to create or replace.
        tables: one, by its name. Its ``metadata`` must be JSON.

    Raises:
        ArgumentError: there are several tables, or the metadata are no JSON.
        MissingExtraError: pyarrow is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    pa = library(WHAT)
    name, table = only(tables, ".arrow")
    schema = schema_of(pa, table, name)
    with replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        # One batch: words in several would not lie in one piece, and could not be mapped as a table.
        writer.write_batch(batch_of(pa, table, schema, 0, len(table)))


def read(path: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Return what the schema of an Arrow file says; the words are not read.

    Raises:
        DataError: the file is missing, cut short, damaged, or holds no packed table.
        MissingExtraError: pyarrow is not installed.
    """
    pa = library(WHAT)
    target = Path(path)
    batch = _batch(pa, target)

    def arrays(mmap: bool) -> Arrays:
        opened = _batch(pa, target)
        words = bytes_of(opened.column("words"), opened.schema.field("words").type.byte_width).view("<u4")
        words = words if mmap else words.copy()
        if stored.scale_kind is None:
            return words, None
        if stored.scale_kind == "table":
            return words, scale_in_schema(target, opened.schema)
        return words, np.array(bytes_of(opened.column("scale"), 4).view("<f4").reshape(-1))

    stored = stored_of(pa, target, batch.schema, batch.num_rows, arrays)
    return {stored.name: stored}


def _batch(pa: Any, path: Path) -> Any:
    """Return the one batch of a file, mapped, its buffers checked to be as long as they should."""
    try:
        with pa.memory_map(os.fspath(path)) as file:
            reader = pa.ipc.open_file(file)
            if reader.num_record_batches != 1:
                raise DataError(path, None, f"has {reader.num_record_batches} record batches, not one")
            batch = reader.get_batch(0)
            batch.validate()
            if any(column.null_count for column in batch.columns):
                raise DataError(path, None, "has rows that are null", "Export the table again.")
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(path, error) from None
    return batch
