"""One packed table in one safetensors file: the words, the scale, and what they mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from packedbag.core.errors import DataError, MissingExtraError
from packedbag.io.atomic import replacing
from packedbag.table import PackedTable

#: The one key of the file's metadata. safetensors writes several in any order: with one, equal tables are equal files.
KEY = "packedbag.table"
VERSION = 1


def save(path: str | os.PathLike[str], table: PackedTable) -> None:
    """Write ``table`` to ``path`` in one atomic step.

    The file holds ``weight``, uint32 (V, W), and ``scale``, float32 () or (V,), if the table has one. Its
    metadata have one entry, ``packedbag.table``: JSON with ``version``, ``embedding_dim`` and ``metadata``, the
    table's own. The same table makes the same bytes.

    Args:
        path: the file to create or replace.
        table: its ``metadata`` must be JSON.

    Raises:
        MissingExtraError: safetensors is not installed.
        OSError: the file cannot be written; an older file of that name is unchanged.
    """
    arrays = {"weight": np.ascontiguousarray(table.words, dtype="<u4")}
    if table.scale is not None:
        arrays["scale"] = np.ascontiguousarray(table.scale, dtype="<f4")
    header = {"version": VERSION, "embedding_dim": table.embedding_dim, "metadata": dict(table.metadata)}
    data = _library().save(arrays, metadata={KEY: json.dumps(header, sort_keys=True)})
    with replacing(path) as file:
        file.write(data)


def load(path: str | os.PathLike[str]) -> PackedTable:
    """Read a table that `save` wrote.

    Raises:
        DataError: the file is missing, cut short, or holds something else.
        MissingExtraError: safetensors is not installed.
    """
    library = _library()
    if not Path(path).is_file():
        raise DataError(path, None, "there is no such file")
    try:
        with library.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (library.SafetensorError, OSError) as error:
        raise DataError(path, None, f"is not a whole safetensors file ({error})", "Export the table again.") from None
    if text is None or "weight" not in arrays:
        raise DataError(path, None, "is a safetensors file, but not a packed table", "packedbag.io writes such files.")
    header = _header(path, text)
    return PackedTable(arrays["weight"], header["embedding_dim"], arrays.get("scale"), header["metadata"])


def _header(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """Parse and check the JSON in the file's metadata."""
    try:
        header: dict[str, Any] = json.loads(text)
        version = header["version"]
        if version == VERSION:
            return {"embedding_dim": int(header["embedding_dim"]), "metadata": dict(header["metadata"])}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(path, None, f"has metadata that are no packed table's ({error!r})") from None
    raise DataError(path, None, f"has format version {version}; this packedbag reads {VERSION}", "Upgrade packedbag.")


def require() -> None:
    """Raise `MissingExtraError` unless safetensors is installed: to be called before hours of training."""
    _library()


class _Library:
    """The three names of safetensors that are used here, imported on use."""

    def __init__(self) -> None:
        try:
            import safetensors
            import safetensors.numpy
        except ImportError:
            raise MissingExtraError("Writing or reading .safetensors", "safetensors", "io") from None
        self.save: Any = safetensors.numpy.save
        self.safe_open: Any = safetensors.safe_open
        self.SafetensorError: type[Exception] = safetensors.SafetensorError


def _library() -> _Library:
    return _Library()
