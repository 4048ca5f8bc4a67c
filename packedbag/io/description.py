"""What files of one table say of it in JSON: the same fields in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, DataError, PackedBagError
from packedbag.core.layout import check_embedding_dim
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import check_code
from packedbag.io.stored import Opener, StoredTable, checksum, scale_kind
from packedbag.table import PackedTable

#: Column j is bit j % 32 of word j // 32.
BIT_ORDER = "lsb"
#: Version 2 is version 1 with a ``code``, by which bits make values. It is written where that is not the mean for all
#: tables of a file, so that a reader that knows of nothing but means refuses the file.
VERSIONS = (1, 2)
READ_VERSIONS = " and ".join(map(str, VERSIONS))
DEFAULT_CODE = "thermometer"
SCALES = (None, "table", "row")


def describe(table: PackedTable, name: str, *, with_scale: bool = False) -> dict[str, Any]:
    """Return what is to be known of ``table`` besides its words and the scales of its rows.

    Args:
        table: to be written.
        name: its name.
        with_scale: whether the one scale of a table is kept here, as ``scale_value``: `table_scale` returns it.
    """
    kind, version = scale_kind(table), version_of(table.code)
    value = {"scale_value": float(table.scale)} if with_scale and kind == "table" else {}  # type: ignore[arg-type]
    return {
        "version": version,
        "name": name,
        "num_embeddings": table.num_embeddings,
        "embedding_dim": table.embedding_dim,
        "bits_per_value": table.bits_per_value,
        **({"code": table.code} if version > 1 else {}),
        "bit_order": BIT_ORDER,
        "scale": kind,
        **value,
        "sha256": checksum(table.words, table.scale),
        "metadata": dict(table.metadata),
    }


def version_of(*codes: str) -> int:
    """Return the lowest version of a file that has room for tables of these codes."""
    return 1 if all(code == DEFAULT_CODE for code in codes) else 2


def code_said(value: Mapping[str, Any], version: int, bits_per_value: int) -> str:
    """Return by which code a file of ``version`` says that bits make the values of a table.

    Raises:
        ArgumentError: by none that is known or fits the table; or a file of version 1 says another one than the mean,
            which a reader of that version would not see.
    """
    code: Any = value.get("code", DEFAULT_CODE if version == 1 else None)
    if version == 1 and code != DEFAULT_CODE:
        raise ArgumentError("code", f"{code!r:.50}", f"{DEFAULT_CODE!r} in a file of version 1")
    if check_code(code, bits_per_value) == "binary" and value.get("scale") == "row":
        raise ArgumentError("scale", "'row'", "None or 'table' with code='binary'")
    return str(code)


def described(path: Path, value: dict[str, Any], arrays: Opener) -> StoredTable:
    """Return the table that `describe` described, its words unread.

    Raises:
        DataError: the description is of a later version, lacks something, or contradicts itself.
    """
    version = value.get("version")
    if type(version) is not int or version not in VERSIONS or value.get("bit_order") != BIT_ORDER:
        problem = f"has format version {version!r:.20} and bit order {value.get('bit_order')!r:.20}; this packedbag "
        raise DataError(path, None, f"{problem}reads {READ_VERSIONS}, and {BIT_ORDER!r}", "Upgrade packedbag.")
    name, kind = value.get("name"), value.get("scale")
    rows: Any = value.get("num_embeddings")
    sha256, metadata = value.get("sha256"), value.get("metadata")
    try:
        dim = check_embedding_dim(value.get("embedding_dim"))  # type: ignore[arg-type]
        bits = check_bits_per_value(value.get("bits_per_value"), dim, "sum", "float32")  # type: ignore[arg-type]
        code = code_said(value, version, bits)
    except (PackedBagError, TypeError) as error:
        raise DataError(path, None, f"describes no packed table: {error!s:.200}", "Export the table again.") from None
    is_size = type(rows) is int and 0 <= rows < 1 << 62 and kind in SCALES
    if not (is_size and isinstance(name, str) and isinstance(sha256, str) and isinstance(metadata, dict)):
        problem = f"describes no packed table: name {name!r:.50}, num_embeddings {rows!r:.50}, scale {kind!r:.50}"
        raise DataError(path, None, problem, "Export the table again.")
    return StoredTable(path, name, rows, dim, bits, code, kind, metadata, sha256, arrays)


def table_scale(path: Path, said: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Return the one scale of a table, () float32, that `describe` kept.

    Raises:
        DataError: it is no finite number.
    """
    value = said.get("scale_value")
    if not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise DataError(path, None, f"has scale_value {value!r:.50}", "Export the table again.")
    return np.array(value, np.float32)


def only(tables: Any, format_name: str) -> tuple[str, PackedTable]:
    """Return name and table where a format has room for one.

    Raises:
        ArgumentError: there are none or several.
    """
    if len(tables) != 1:
        raise ArgumentError(
            "source", f"{len(tables)} tables", f"one, for {format_name}", "A .safetensors file holds any number."
        )
    ((name, table),) = tables.items()
    return name, table


def mapped(path: Path, dtype: str, offset: int, shape: tuple[int, ...], mmap: bool) -> Any:
    """Return an array of a file, mapped read-only or read. The caller has checked that the file is long enough."""
    count = int(np.prod(shape, dtype=object))
    if mmap and count:  # a file of no bytes cannot be mapped
        return np.memmap(path, dtype, "r", offset, shape)
    with path.open("rb") as file:
        file.seek(offset)
        return np.fromfile(file, dtype, count).reshape(shape)
