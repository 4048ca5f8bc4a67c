"""From the file that a command is given to its packed tables, whatever format or checkpoint it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from packedbag.cli.console import printable
from packedbag.core.errors import ArgumentError, DataError
from packedbag.core.modes import get_mode
from packedbag.io import formats, tables
from packedbag.table import PackedTable

#: What a checkpoint of torch is called, and how the names of such files end.
CHECKPOINT = "checkpoint"
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt")


@dataclass
class PackedFile:
    """What a file holds.

    Attributes:
        path: the file.
        format: the name of its format, or `CHECKPOINT`.
        tables: by name; those of a format that is mapped stay in the file.
        remarks: what a user should know, a line each.
    """

    path: Path
    format: str
    tables: dict[str, PackedTable]
    remarks: list[str] = field(default_factory=list)


def open_packed(
    path: Path,
    *,
    embedding_dim: int | None = None,
    bits_per_value: int | None = None,
    code: str | None = None,
    mode: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> PackedFile:
    """Open a packed file, or pack the tables of a checkpoint of packedbag or bitorch-engine.

    Args:
        path: the file; its suffix says what it is.
        embedding_dim: D of tables in a checkpoint, whose words do not say it.
        bits_per_value, code: of tables in a checkpoint that says nothing of them.
        mode: of the tables, where they are to have another one than they say, or a checkpoint that says none.
        progress: called with the bytes of a checkpoint that were read, and all.

    Raises:
        DataError: it is missing, damaged, or holds no packed table.
    """
    if path.suffix.lower() in CHECKPOINTS:
        found = _of_checkpoint(path, (embedding_dim, bits_per_value, code), progress)
    else:
        for name, value in (("--bits-per-value", bits_per_value), ("--code", code)):
            if value is not None:
                raise ArgumentError(name, value, "left out where MODEL is a packed file: it says that")
        stored = tables.describe(path)
        found = PackedFile(path, formats.find(path).name, {name: each.load() for name, each in stored.items()})
    if not found.tables:
        raise DataError(path, None, "holds no table")
    if mode is None and found.format == CHECKPOINT and any("mode" not in t.metadata for t in found.tables.values()):
        found.remarks.append("a checkpoint does not say how its tables are reduced: pass --mode, or bags are sums.")
    if mode is not None:
        get_mode(mode)
        for name, each in found.tables.items():
            metadata = {**each.metadata, "mode": mode}
            dim, bits, code = each.embedding_dim, each.bits_per_value, each.code
            found.tables[name] = PackedTable(each.words, dim, each.scale, metadata, bits_per_value=bits, code=code)
    return found


def _of_checkpoint(
    path: Path, options: tuple[int | None, int | None, str | None], progress: Callable[[int, int], object]
) -> PackedFile:
    from packedbag.adapters.bitorch_engine import read_checkpoint

    embedding_dim, bits_per_value, code = options
    found = read_checkpoint(path, embedding_dim, bits_per_value=bits_per_value, code=code, progress=progress)
    remarks = [
        f"{shown(prefix)}: D is taken as {dim:,}, all bits of a row: MODEL does not say it. Else pass --embedding-dim."
        for prefix, dim in found.assumed.items()
    ]
    return PackedFile(
        path, "checkpoint", {name.removesuffix("."): each for name, each in found.tables.items()}, remarks
    )


def shown(name: str) -> str:
    """Return the name of a table for a terminal."""
    return printable(name.removesuffix(".") or "(no name)")
