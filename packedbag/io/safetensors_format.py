"""Packed tables of any number in one ``.safetensors`` file, by their names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from packedbag.core.errors import ArgumentError
from packedbag.io import safetensors_tables
from packedbag.io.stored import StoredTable
from packedbag.table import PackedTable


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write tables in one atomic step: `packedbag.io.safetensors_tables.save`. "user" has ``user.weight``."""
    if not tables:
        raise ArgumentError("source", "empty", "at least one table")
    safetensors_tables.save(path, {f"{name}." if name else "": table for name, table in tables.items()})


def read(path: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Return what the header of a file says of its tables: `packedbag.io.safetensors_tables.read`."""
    found = safetensors_tables.read(path).tables
    return {prefix.removesuffix("."): replace(table, name=prefix.removesuffix(".")) for prefix, table in found.items()}
