"""The formats that packed tables are kept in: one row each, one module each, imported on use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packedbag.core.errors import ArgumentError, DataError
from packedbag.io.stored import StoredTable
from packedbag.table import PackedTable


@dataclass(frozen=True)
class Format:
    """A way of keeping tables in a file.

    Attributes:
        name: what ``format=`` and ``--format`` call it.
        suffixes: of files of this format; the first one is the usual one. None of two formats are the same, except
            that a format without suffixes must be asked for by name.
        module: has ``save(path, tables)``, or what ``writer`` names, and where ``readable``, ``read(path)``, which
            returns `StoredTable` by name.
        what: one line for help texts.
        several: whether a file holds any number of tables.
        readable: whether `packedbag.load` reads it; the others are for other programs.
        extra: whose libraries it needs, None for none.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    what: str
    several: bool = False
    readable: bool = True
    extra: str | None = None
    writer: str = "save"

    def save(self, path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
        """Write tables by name, in a way that leaves the old file or the new one.

        Raises:
            ArgumentError: the format has no room for them.
            MissingExtraError: its library is not installed.
            OSError: the file cannot be written; an older one is unchanged.
        """
        getattr(importlib.import_module(self.module), self.writer)(path, tables)

    def read(self, path: str | os.PathLike[str]) -> dict[str, StoredTable]:
        """Return what the file says of its tables; the words are not read.

        Raises:
            ArgumentError: the format is not one that is read.
            DataError: the file is missing, damaged or of something else.
            MissingExtraError: its library is not installed.
        """
        if not self.readable:
            readable = ", ".join(f"'{each.name}'" for each in FORMATS if each.readable)
            raise ArgumentError("format", repr(self.name), readable, "It is written for other programs only.")
        found: dict[str, StoredTable] = importlib.import_module(self.module).read(path)
        return found


FORMATS = (
    Format(
        name="safetensors",
        suffixes=(".safetensors",),
        module="packedbag.io.safetensors_format",
        what="words and scales, any number of tables",
        several=True,
    ),
    Format(
        name="pbag",
        suffixes=(".pbag",),
        module="packedbag.io.pbag",
        what="a header page and aligned words, for C and Rust to map",
    ),
    Format(
        name="npy",
        suffixes=(".npy",),
        module="packedbag.io.npy_file",
        what="words for NumPy, and a sidecar .npy.json",
    ),
    Format(
        name="arrow",
        suffixes=(".arrow", ".feather"),
        module="packedbag.io.arrow_file",
        what="ids and words as columns, mapped (Arrow IPC)",
        extra="io",
    ),
    Format(
        name="parquet",
        suffixes=(".parquet",),
        module="packedbag.io.parquet_file",
        what="ids and words as columns, in row groups, for query engines",
        extra="io",
    ),
    Format(
        name="faiss",
        suffixes=(".faiss",),
        module="packedbag.io.faiss_index",
        what="IndexBinaryFlat of FAISS",
        readable=False,
        extra="search",
    ),
    Format(
        name="usearch",
        suffixes=(".usearch",),
        module="packedbag.io.usearch_index",
        what="index of usearch, b1",
        readable=False,
        extra="usearch",
    ),
    Format(
        name="onnx",
        suffixes=(".onnx",),
        module="packedbag.io.onnx_graph",
        what="graph of standard operators that reduces bags",
        readable=False,
        extra="onnx",
    ),
    *(
        Format(
            name=name,
            suffixes=(),
            module="packedbag.io.unpacked",
            what=what,
            several=True,
            readable=False,
            writer=f"save_{name}",
        )
        for name, what in (
            ("fp32", "state dict of torch.nn.EmbeddingBag, 32 times as large"),
            ("int8", "state dict of +-1 in int8, 8 times as large"),
            ("bool", "state dict of bools, 8 times as large"),
        )
    ),
)


def find(path: str | os.PathLike[str], name: str | None = None, *, reading: bool = False) -> Format:
    """Return the format called ``name``, or else the one that the suffix of ``path`` names.

    Args:
        path: of the file.
        name: of the format, None for the suffix's.
        reading: whether the file exists: what its name does not say may be told from its first bytes.

    Raises:
        ArgumentError: there is no such format.
    """
    if name is not None:
        for each in FORMATS:
            if each.name == name:
                return each
        raise ArgumentError("format", repr(name), f"one of {', '.join(repr(each.name) for each in FORMATS)}")
    suffix = Path(path).suffix.lower()
    for each in FORMATS:
        if suffix in each.suffixes:
            return each
    known = ", ".join(suffix for each in FORMATS for suffix in each.suffixes if each.readable or not reading)
    if reading:
        problem = f"is not read, by the end of its name, {suffix!r}; packed files end in {known}"
        raise DataError(path, None, problem, "Pass format= for one of another name.")
    others = ", ".join(repr(each.name) for each in FORMATS if not each.suffixes)
    raise ArgumentError(
        "path", repr(os.fspath(path)), f"a name that ends in {known}", f"Or pass a format, such as {others}."
    )
