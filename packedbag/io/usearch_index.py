"""``.usearch``: an index of usearch with ``b1`` scalars, for approximate search by Hamming distance."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from packedbag.core.errors import MissingExtraError
from packedbag.io.atomic import replacing
from packedbag.io.byte_rows import byte_rows
from packedbag.io.description import only
from packedbag.table import PackedTable


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table in one atomic step; the index, a graph, is built in memory first, which takes its time.

    ``usearch.index.Index.restore(path)`` opens it. Its ``ndim`` is D rounded up to bytes; queries are the bytes of
    `packedbag.io.byte_rows.byte_rows`. Keys are rows. Scales, modes, names, and how
    bits make values, have no place in it.

    Args:
        path: the file to create or replace.
        tables: one.

    Raises:
        ArgumentError: there are several tables.
        MissingExtraError: usearch is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    try:
        usearch: Any = importlib.import_module("usearch.index")  # its types lack what is needed
    except ImportError:
        raise MissingExtraError("A usearch index", "usearch", "usearch") from None
    _, table = only(tables, ".usearch")
    columns = -(-table.embedding_dim // 8) * 8
    index = usearch.Index(ndim=columns, metric=usearch.MetricKind.Hamming, dtype=usearch.ScalarKind.B1)
    for start, rows in byte_rows(table):
        index.add(np.arange(start, start + len(rows), dtype=np.uint64), rows)
    content = index.save()
    with replacing(path) as file:
        file.write(content)
