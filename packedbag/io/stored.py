"""`StoredTable`: one packed table in a file, described before its words are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, DataError, PackedBagError
from packedbag.io.watch import passed
from packedbag.table import PackedTable

#: Bytes that are hashed or copied at once.
PIECE = 1 << 24

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]
#: Opens words (V, W) and scale; its argument says whether words may be a memory map.
Opener = Callable[[bool], Arrays]


@dataclass(frozen=True)
class StoredTable:
    """What a file says of one of its tables; the words stay in it until `load` or `verify`.

    Attributes:
        path: the file.
        name: of the table; "" in a file of one table that was saved without.
        num_embeddings: V.
        embedding_dim: D.
        bits_per_value: neighbouring columns that make one value.
        code: how they make it, one of `packedbag.core.value_codes.CODES`.
        scale_kind: None, "table" or "row".
        metadata: what was kept with the table, such as mode and padding_idx.
        sha256: of words and scale, as `checksum` computes it; None where the format has no place for it.
        arrays: opens words and scale.
    """

    path: Path
    name: str
    num_embeddings: int
    embedding_dim: int
    bits_per_value: int
    code: str
    scale_kind: str | None
    metadata: Mapping[str, Any] = field(repr=False)
    sha256: str | None = field(repr=False)
    arrays: Opener = field(repr=False)

    def load(self, *, mmap: bool = True) -> PackedTable:
        """Return the table.

        Args:
            mmap: whether the words stay in the file, mapped read-only, where the format allows it.

        Raises:
            DataError: its metadata have a mode or a padding_idx that make no sense.
        """
        words, scale = self.arrays(mmap)
        try:
            dim, bits, code = self.embedding_dim, self.bits_per_value, self.code
            return PackedTable(words, dim, scale, self.metadata, bits_per_value=bits, code=code)
        except PackedBagError as error:
            raise DataError(self.path, None, f"table {self.name!r:.100}: {error}", "Export the table again.") from None

    def verify(self) -> None:
        """Read everything, and compare its checksum with the one in the file.

        Raises:
            DataError: they differ: the file was damaged, or changed by something that is not packedbag.
        """
        found = checksum(*self.arrays(True))
        if self.sha256 is not None and found != self.sha256:
            which = f"table {self.name!r}" if self.name else "the table"
            raise DataError(
                self.path,
                None,
                f"the words of {which} have sha256 {found[:16]}..., the file says {self.sha256[:16]}...",
                "It was damaged or changed: export the table again.",
            )


def checksum(words: npt.NDArray[Any], scale: npt.NDArray[Any] | None) -> str:
    """Return the sha256 of a table's words and scale, little-endian, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for array, dtype in ((words, "<u4"), (scale, "<f4")):
        if array is None:
            continue
        flat = array.reshape(-1)
        for start in range(0, flat.size, PIECE // 4):
            part = np.ascontiguousarray(flat[start : start + PIECE // 4]).astype(dtype, copy=False)
            digest.update(part.data)
            passed(part.nbytes)
    return digest.hexdigest()


def scale_kind(table: PackedTable) -> str | None:
    """Return which scale ``table`` has: None, "table" or "row"."""
    if table.scale is None:
        return None
    return "row" if table.scale.ndim else "table"


def as_json(value: object, what: str) -> str:
    """Return ``value`` as JSON with sorted keys, so that the same table makes the same bytes."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(what, f"{value!r:.200}", "JSON: numbers, strings, lists and dicts", str(error)) from None


def from_json(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object of a file that anybody may have written.

    Raises:
        DataError: it is no JSON object, or nested deeper than Python's parser goes.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, f"{what} is no JSON ({error!s:.100})", "Export the table again.") from None
    if not isinstance(value, dict):
        raise DataError(path, None, f"{what} is no JSON object", "Export the table again.")
    return value
