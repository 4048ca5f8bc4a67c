"""``.faiss``: an ``IndexBinaryFlat`` of FAISS, whose distances are Hamming distances of rows."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from packedbag.core.errors import MissingExtraError
from packedbag.io.atomic import replacing
from packedbag.io.byte_rows import byte_rows
from packedbag.io.description import only
from packedbag.table import PackedTable


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table in one atomic step; the index is made in memory, as large as the table.

    ``faiss.read_index_binary(path)`` opens it. Its ``d`` is D rounded up to bytes; queries are the bytes of
    `packedbag.io.byte_rows.byte_rows`. Ids are rows. Scales, modes, names, and how
    bits make values, have no place in it.

    Args:
        path: the file to create or replace.
        tables: one.

    Raises:
        ArgumentError: there are several tables.
        MissingExtraError: faiss is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    try:
        faiss: Any = importlib.import_module("faiss")  # its types lack what is needed
    except ImportError:
        raise MissingExtraError("A FAISS index", "faiss", "search") from None
    _, table = only(tables, ".faiss")
    index = faiss.IndexBinaryFlat(-(-table.embedding_dim // 8) * 8)
    for _, rows in byte_rows(table):
        index.add(rows)
    with replacing(path) as file:
        faiss.write_index_binary(index, faiss.PyCallbackIOWriter(file.write))
