"""`packedbag.save`, `packedbag.load` and `packedbag.verify`: tables in files of any format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from packedbag.core.errors import ArgumentError
from packedbag.io import formats
from packedbag.io.stored import StoredTable
from packedbag.table import PackedTable


def save(source: Any, path: str | os.PathLike[str], *, format: str | None = None) -> None:  # noqa: A002
    """Write packed tables to a file that serves without torch: the optimizer's state stays behind.

    The words are not copied, and a reader, a crash or a full disk finds the old file or the new one, whole.

    Args:
        source: a `PackedTable`; a mapping of them by name; a packed module; or a model that holds packed modules,
            whose tables get the names that ``state_dict()`` has for them, without ``.weight``.
        path: the file to create or replace. Its suffix says the format: see `packedbag.io.formats.FORMATS`.
        format: the format's name, instead of the suffix.

    Raises:
        ArgumentError: there is nothing packed in ``source``, or the format is not known, or has no room for it.
        MissingExtraError: the format's library is not installed.
        OSError: the file cannot be written; an older one of that name is unchanged.

    >>> import numpy as np, tempfile
    >>> from packedbag import PackedTable
    >>> path = tempfile.mkdtemp() + "/items.safetensors"
    >>> save(PackedTable(np.zeros((10, 2), np.uint32), 64), path)
    >>> load(path)
    PackedTable(10, 64, 80 bytes)
    """
    formats.find(path, format).save(path, tables_of(source))


def load(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    verify: bool = False,
    format: str | None = None,  # noqa: A002
) -> Any:
    """Open tables that `save` wrote, without torch and without reading them.

    Words stay in the file, mapped read-only, where the format allows it: nothing is read before its rows are,
    processes share the pages, and the system may take them back. `save` to the same path puts a new file in its
    place, which an open table does not see.

    Args:
        path: the file.
        name: of the table to open, in a file of several.
        verify: whether to read all words first, and compare their checksum.
        format: the format's name, instead of the one that the suffix says.

    Returns:
        The one table, a `PackedTable`; of a file of several, without a name, a mapping that opens each on access.

    Raises:
        DataError: the file is missing, cut short, damaged, of a later version, or holds something else.
        ArgumentError: the file has no table of that name.
        MissingExtraError: the format's library is not installed.
    """
    stored = describe(path, format=format)
    if name is not None:
        if name not in stored:
            raise ArgumentError("name", repr(name), f"one of {', '.join(map(repr, stored))}, the tables of {path}")
        stored = {name: stored[name]}
    if verify:
        for each in stored.values():
            each.verify()
    if len(stored) != 1:
        return LazyTables(stored)
    (only,) = stored.values()
    return only.load()


def verify(path: str | os.PathLike[str], *, format: str | None = None) -> dict[str, str | None]:  # noqa: A002
    """Read all words and scales of a file, and compare them with its checksums.

    Returns:
        By the names of the tables, their sha256, or None where the file has none.

    Raises:
        DataError: a table is damaged, or the file cannot be read.
    """
    stored = describe(path, format=format)
    for each in stored.values():
        each.verify()
    return {name: each.sha256 for name, each in stored.items()}


def describe(path: str | os.PathLike[str], *, format: str | None = None) -> dict[str, StoredTable]:  # noqa: A002
    """Return what a file says of its tables, by name; their words are not read. Errors are those of `load`."""
    return formats.find(path, format, reading=True).read(path)


class LazyTables(Mapping[str, PackedTable]):
    """The tables of a file by name, opened on access."""

    def __init__(self, stored: Mapping[str, StoredTable]) -> None:
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> PackedTable:
        return self.stored[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        shapes = (f"{name!r}: {each.num_embeddings} x {each.embedding_dim}" for name, each in self.stored.items())
        return f"LazyTables({', '.join(shapes)})"


def tables_of(source: Any) -> dict[str, PackedTable]:
    """Return the packed tables of what `save` takes, by name; "" for one alone.

    Raises:
        ArgumentError: there are none.
    """
    if isinstance(source, PackedTable):
        return {"": source}
    if isinstance(source, Mapping):
        for name, table in source.items():
            if not isinstance(name, str) or not isinstance(table, PackedTable):
                seen = f"a mapping with {name!r}: {type(table).__name__}"
                raise ArgumentError("source", seen, "names and PackedTables", "Call to_table() on a module.")
        if source:
            return dict(source)
    elif hasattr(source, "to_table"):
        return {"": source.to_table()}
    elif hasattr(source, "named_modules"):
        found = {name: module.to_table() for name, module in source.named_modules() if hasattr(module, "to_table")}
        if found:
            return found
    seen = f"a {type(source).__name__}" + (" that holds no packed table" if hasattr(source, "__len__") else "")
    raise ArgumentError("source", seen, "a PackedTable, a mapping of them, or a model with packed modules")
