"""One packed table in one safetensors file: the words, the scale, and what they mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import DataError, MissingExtraError
from packedbag.io.atomic import replacing
from packedbag.table import PackedTable

#: The one key of the file's metadata. safetensors writes several in any order: with one, equal tables are equal files.
KEY = "packedbag.table"
VERSION = 1
#: Bytes of the number before the header, to a multiple of which the header is filled up with spaces.
LENGTH_BYTES = 8
#: safetensors' names of the dtypes that words may have.
WORD_DTYPES = {"U32": "<u4", "I32": "<i4"}


def save(path: str | os.PathLike[str], table: PackedTable) -> None:
    """Write ``table`` to ``path`` in one atomic step, without a copy of it in memory.

    The file holds ``weight``, uint32 (V, W), and ``scale``, float32 () or (V,), if the table has one. Its
    metadata have one entry, ``packedbag.table``: JSON with ``version``, ``embedding_dim``, ``bits_per_value`` where
    it is not 1, and ``metadata``, the table's own. The same table makes the same bytes.

    Args:
        path: the file to create or replace.
        table: its ``metadata`` must be JSON.

    Raises:
        OSError: the file cannot be written; an older file of that name is unchanged.

    Source:
        https://huggingface.co/docs/safetensors: the length of the header (8 bytes), the header, the arrays.
    """
    # safetensors puts floats before integers of the same width.
    arrays = {} if table.scale is None else {"scale": ("F32", np.array(table.scale, dtype="<f4", order="C"))}
    arrays["weight"] = ("U32", np.asarray(table.words, dtype="<u4"))
    own = {"version": VERSION, "embedding_dim": table.embedding_dim, "metadata": dict(table.metadata)}
    if table.bits_per_value > 1:
        own["bits_per_value"] = table.bits_per_value
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(own, sort_keys=True)}}
    end = 0
    for name, (dtype, array) in arrays.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    with replacing(path) as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for _, array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> PackedTable:
    """Read a table that `save` wrote.

    Args:
        path: the file.
        mmap: whether the words stay in the file, mapped read-only: nothing is read until its rows are, processes
            that map one file share its pages, and the system may take them back. The file must stay as it is;
            `save` to the same path does not touch it, but puts a new file in its place.

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
            names = [name for name in file.keys() if name != "weight" or not mmap]  # noqa: SIM118 - it is no mapping
            arrays = {name: file.get_tensor(name) for name in names}
            if mmap and "weight" in file.keys():  # noqa: SIM118
                arrays["weight"] = _mapped_words(Path(path))
    except (library.SafetensorError, OSError) as error:
        raise DataError(path, None, f"is not a whole safetensors file ({error})", "Export the table again.") from None
    if text is None or "weight" not in arrays:
        raise DataError(path, None, "is a safetensors file, but not a packed table", "packedbag.io writes such files.")
    header = _header(path, text)
    return PackedTable(arrays["weight"], scale=arrays.get("scale"), **header)


def _mapped_words(path: Path) -> npt.NDArray[Any]:
    """Return ``weight`` of a safetensors file, whose header was checked, as a read-only map."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        entry = json.loads(file.read(length))["weight"]
    if entry["dtype"] not in WORD_DTYPES:
        raise DataError(path, None, f"has weights of dtype {entry['dtype']}, not U32", "Export the table again.")
    start, end = entry["data_offsets"]
    dtype = WORD_DTYPES[entry["dtype"]]
    if start == end:  # a file of no bytes cannot be mapped
        return np.empty(entry["shape"], dtype)
    return np.memmap(path, dtype, "r", LENGTH_BYTES + length + start, tuple(entry["shape"]))


def _header(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """Parse and check the JSON in the file's metadata."""
    try:
        header: dict[str, Any] = json.loads(text)
        version = header["version"]
        if version == VERSION:
            bits = int(header.get("bits_per_value", 1))
            dim, metadata = int(header["embedding_dim"]), dict(header["metadata"])
            return {"embedding_dim": dim, "bits_per_value": bits, "metadata": metadata}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(path, None, f"has metadata that are no packed table's ({error!r})") from None
    raise DataError(path, None, f"has format version {version}; this packedbag reads {VERSION}", "Upgrade packedbag.")


def require() -> None:
    """Raise `MissingExtraError` unless safetensors is installed: to be called before hours of training."""
    _library()


class _Library:
    """The two names of safetensors that are used here, imported on use."""

    def __init__(self) -> None:
        try:
            import safetensors
        except ImportError:
            raise MissingExtraError("Reading .safetensors", "safetensors", "io") from None
        self.safe_open: Any = safetensors.safe_open
        self.SafetensorError: type[Exception] = safetensors.SafetensorError


def _library() -> _Library:
    return _Library()
