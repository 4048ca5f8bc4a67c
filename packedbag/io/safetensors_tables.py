"""Any number of packed tables in one safetensors file, with other tensors beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, DataError, PackedBagError
from packedbag.core.layout import check_embedding_dim, words_per_row
from packedbag.core.thermometer import check_bits_per_value
from packedbag.io.atomic import replacing
from packedbag.io.dense_tensor import ITEM_BYTES, DenseTensor
from packedbag.io.description import BIT_ORDER, READ_VERSIONS, VERSIONS, code_said, version_of
from packedbag.io.safetensors_header import METADATA, Entry, Header, header_bytes, read_header
from packedbag.io.stored import Arrays, StoredTable, as_json, checksum, from_json, scale_kind
from packedbag.io.watch import write_tensor
from packedbag.table import PackedTable

#: The one key of the metadata. safetensors writes several in any order: with one, equal contents are equal files.
KEY = "packedbag.tables"


@dataclass(frozen=True)
class StoredTables:
    """What a file holds; words and tensors stay in it.

    Attributes:
        path: the file.
        tables: by the prefix of their tensors' names: "" and "user." have ``weight`` and ``user.weight``.
        dense: all other tensors, by name.
    """

    path: Path
    tables: dict[str, StoredTable]
    dense: dict[str, DenseTensor]


def save(
    path: str | os.PathLike[str],
    tables: Mapping[str, PackedTable],
    dense: Mapping[str, npt.NDArray[Any] | DenseTensor] | None = None,
) -> None:
    """Write tables and other tensors to ``path`` in one atomic step, without a copy of them in memory.

    A table is ``<prefix>weight``, uint32 (V, W), and ``<prefix>scale``, float32 () or (V,), if it has one. The
    metadata have one entry, ``packedbag.tables``: JSON with ``version``, ``bit_order`` ("lsb": column j is bit
    j % 32 of word j // 32) and ``tables``, which has by prefix ``embedding_dim``, ``bits_per_value``, ``scale``
    (null, "table" or "row"), ``metadata``, the table's own, among it mode and padding_idx, and ``sha256`` of words
    and scale. Where bits of some table make other values than their mean, the version is 2, and every table has its
    ``code``. Equal contents make equal bytes.

    Args:
        path: the file to create or replace.
        tables: by prefix. Their ``metadata`` must be JSON.
        dense: other tensors, by name.

    Raises:
        ArgumentError: two tensors would have one name, or metadata are no JSON.
        OSError: the file cannot be written; an older file of that name is unchanged.
    """
    tensors: dict[str, DenseTensor] = {}
    for name, value in (dense or {}).items():
        tensors[name] = value if isinstance(value, DenseTensor) else DenseTensor.of(value)
    own: dict[str, Any] = {}
    version = version_of(*(table.code for table in tables.values()))
    for prefix, table in tables.items():
        parts = {"weight": table.words.view(np.uint32)} | ({} if table.scale is None else {"scale": table.scale})
        for part, array in parts.items():
            if prefix + part in tensors:
                raise ArgumentError("dense", f"holding {prefix + part!r}", f"free of names of table {prefix!r}")
            tensors[prefix + part] = DenseTensor.of(array)
        own[prefix] = {
            "embedding_dim": table.embedding_dim,
            "bits_per_value": table.bits_per_value,
            **({"code": table.code} if version > 1 else {}),
            "scale": scale_kind(table),
            "metadata": dict(table.metadata),
            "sha256": checksum(table.words, table.scale),
        }
    if METADATA in tensors:
        raise ArgumentError("dense", f"holding {METADATA!r}", "free of that name, which the format keeps for itself")
    # Large elements first, so that each tensor begins at a multiple of its element; words before scales, so that
    # those of the first table begin where the header ends, at a line of the cache.
    words = {prefix + "weight" for prefix in tables}
    ordered = dict(
        sorted(tensors.items(), key=lambda item: (-ITEM_BYTES[item[1].dtype], item[0] not in words, item[0]))
    )
    header = header_bytes(
        ordered, {KEY: as_json({"version": version, "bit_order": BIT_ORDER, "tables": own}, "metadata")}
    )
    with replacing(path) as file:
        file.write(header)
        for tensor in ordered.values():
            write_tensor(file, tensor)


def read(path: str | os.PathLike[str]) -> StoredTables:
    """Return what the header of a file says; words are not read.

    Args:
        path: written by `save`.

    Raises:
        DataError: the file is missing, cut short, damaged in its header, of a later version, or holds no packed
            table. What is damaged in words is found by `StoredTable.verify`.
    """
    target = Path(path)
    header = read_header(target)
    if KEY not in header.metadata:
        raise DataError(
            path, None, "is a safetensors file, but holds no packed table", "packedbag.save writes such files."
        )
    said = _versioned(target, header.metadata[KEY])
    described = said.get("tables")
    if not isinstance(described, dict):
        raise _foreign(target, "they list no tables")
    tables = {prefix: _table(target, header, said["version"], prefix, value) for prefix, value in described.items()}
    taken = {prefix + "weight" for prefix in tables}
    taken |= {prefix + "scale" for prefix, table in tables.items() if table.scale_kind is not None}
    dense = {name: entry.tensor(target) for name, entry in header.entries.items() if name not in taken}
    return StoredTables(target, tables, dense)


def _versioned(path: Path, text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _foreign(path, "they are no text")
    value = from_json(path, text, "its metadata")
    if "version" not in value:
        raise _foreign(path, "they have no version")
    version = value["version"]
    if type(version) is not int or version not in VERSIONS or value.get("bit_order", BIT_ORDER) != BIT_ORDER:
        problem = f"has format version {version!r:.20}; this packedbag reads {READ_VERSIONS}"
        raise DataError(path, None, problem, "Upgrade packedbag.")
    return value


def _table(path: Path, header: Header, version: int, prefix: str, value: object) -> StoredTable:
    """Check what the metadata say of a table against its tensors."""
    words = header.entries.get(prefix + "weight")
    if not isinstance(value, dict) or words is None:
        raise _foreign(path, f"{prefix + 'weight'!r:.100} is missing, or not described")
    metadata, kind, sha256 = value.get("metadata"), value.get("scale"), value.get("sha256")
    try:
        dim = check_embedding_dim(value.get("embedding_dim"))  # type: ignore[arg-type]
        bits = check_bits_per_value(value.get("bits_per_value", 1), dim, "sum", "float32")
        code = code_said(value, version, bits)
    except (PackedBagError, TypeError) as error:
        raise _foreign(path, f"of table {prefix!r:.100} they say: {error}") from None
    if not isinstance(metadata, dict) or not (sha256 is None or isinstance(sha256, str)):
        raise _foreign(path, f"of table {prefix!r:.100} they lack metadata, or the checksum is no text")
    width = words_per_row(dim)
    if words.dtype not in ("U32", "I32") or len(words.shape) != 2 or words.shape[1] != width:
        problem = f"has {prefix}weight of dtype {words.dtype} and shape {list(words.shape)}"
        raise DataError(path, None, f"{problem}; {dim} columns are U32 and [V, {width}]", "Export the table again.")
    scale = None if kind is None else header.entries.get(prefix + "scale")
    if kind is not None:
        expected = {"table": (), "row": words.shape[:1]}.get(kind if isinstance(kind, str) else "")
        if scale is None or expected is None or (scale.dtype, scale.shape) != ("F32", expected):
            raise _foreign(path, f"table {prefix!r:.100} has scale {kind!r:.20}, and no float32 tensor of that shape")

    def arrays(mmap: bool) -> Arrays:
        return _words(path, words, mmap), None if scale is None else scale.tensor(path).array()

    return StoredTable(path, prefix, words.shape[0], dim, bits, code, kind, metadata, sha256, arrays)


def _words(path: Path, entry: Entry, mmap: bool) -> npt.NDArray[Any]:
    if mmap and 0 not in entry.shape:  # a file of no bytes cannot be mapped
        return np.memmap(path, "<u4", "r", entry.start, entry.shape)
    if mmap:
        return np.empty(entry.shape, "<u4")
    return DenseTensor("U32", entry.shape, entry.tensor(path).pieces).array()


def _foreign(path: Path, what: str) -> DataError:
    return DataError(path, None, f"has metadata that are no packed tables': {what}", "Export the tables again.")
