"""``.parquet``: rows with their ids in groups, for engines that query files; see `packedbag.io.arrow_rows`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packedbag.core.errors import DataError
from packedbag.core.layout import words_per_row
from packedbag.io.arrow_rows import batch_of, bytes_of, library, scale_in_schema, schema_of, stored_of, unreadable
from packedbag.io.atomic import replacing
from packedbag.io.description import only
from packedbag.io.stored import Arrays, StoredTable
from packedbag.table import PackedTable

WHAT = "A Parquet file"
#: Bytes of the words of a row group.
GROUP_BYTES = 64 << 20


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table in one atomic step, row group by row group, without compression: random bits have none.

    Args:
        path: the file to create or replace.
        tables: one, by its name. Its ``metadata`` must be JSON.

    Raises:
        ArgumentError: there are several tables, or the metadata are no JSON.
        MissingExtraError: pyarrow is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    pa, parquet = _libraries()
    name, table = only(tables, ".parquet")
    schema = schema_of(pa, table, name)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": ["id"], "write_page_checksum": True}
    step = max(1, GROUP_BYTES // (4 * table.words.shape[1]))
    with replacing(path) as file, parquet.ParquetWriter(file, schema, **options) as writer:
        for start in range(0, len(table), step):
            batch = batch_of(pa, table, schema, start, min(start + step, len(table)))
            writer.write_batch(batch, row_group_size=step)


def read(path: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Return what the schema of a Parquet file says; rows are read by `StoredTable.load`, a row group at a time.

    Raises:
        DataError: the file is missing, cut short, damaged, or holds no packed table.
        MissingExtraError: pyarrow is not installed.
    """
    pa, parquet = _libraries()
    target = Path(path)
    try:
        with parquet.ParquetFile(target) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise unreadable(target, error) from None

    def arrays(mmap: bool) -> Arrays:
        words = np.empty((stored.num_embeddings, words_per_row(stored.embedding_dim)), np.uint32)
        scale = np.empty(stored.num_embeddings, np.float32) if stored.scale_kind == "row" else None
        filled = 0
        for part, of_part in groups(target):
            if filled + len(part) > len(words) or part.shape[1] != words.shape[1]:
                raise DataError(target, None, "has row groups of other rows than its footer lists", "Export it again.")
            words[filled : filled + len(part)] = part
            if scale is not None:
                scale[filled : filled + len(part)] = of_part
            filled += len(part)
        if filled != len(words):
            raise DataError(target, None, f"has {filled} rows; its footer says {len(words)}", "Export it again.")
        return words, scale_in_schema(target, schema) if stored.scale_kind == "table" else scale

    stored = stored_of(pa, target, schema, rows, arrays)
    if 4 * rows * words_per_row(stored.embedding_dim) > target.stat().st_size:  # before memory is taken for them
        raise DataError(target, None, f"claims {rows} rows in {target.stat().st_size} bytes", "Export it again.")
    return {stored.name: stored}


def groups(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Yield words (n, W) uint32 and scales (n,) float32, or None, of each row group of a file.

    Raises:
        DataError: a page is damaged.
    """
    pa, parquet = _libraries()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = [name for name in ("words", "scale") if name in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                part = file.read_row_group(number, columns=names).combine_chunks()
                part.validate()
                columns = {name: part.column(name).combine_chunks() for name in names}
                words = bytes_of(columns["words"], columns["words"].type.byte_width).view("<u4")
                if len(words) != part.num_rows:
                    raise DataError(path, None, "has rows that are null", "Export the table again.")
                yield words, bytes_of(columns["scale"], 4).view("<f4").reshape(-1) if "scale" in columns else None
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(Path(path), error) from None


def _libraries() -> tuple[Any, Any]:
    pa = library(WHAT)
    from pyarrow import parquet

    return pa, parquet
