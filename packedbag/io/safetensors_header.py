"""The header of a safetensors file, checked before anything in it is believed, and written.

The file: the length of the header in 8 bytes, the header, which is JSON, and the tensors, one behind the other.

Source:
    https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from packedbag.core.errors import DataError
from packedbag.io.dense_tensor import ITEM_BYTES, DenseTensor
from packedbag.io.stored import from_json

#: Bytes of the number before the header.
LENGTH_BYTES = 8
#: The header is filled up with spaces, so that tensors begin at a multiple of this: rows of 64 bytes then take a line
#: of the cache each, not two.
ALIGNMENT = 64
#: Bytes of a header, at most; the format's own limit.
LONGEST = 100_000_000
#: Dimensions of a tensor, at most: NumPy's limit.
MOST_DIMENSIONS = 64
METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """What the header says of a tensor; ``start`` is its first byte, counted in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    def tensor(self, path: Path) -> DenseTensor:
        """Return the tensor, which stays in the file."""
        return DenseTensor.in_file(self.dtype, self.shape, path, self.start)


@dataclass(frozen=True)
class Header:
    """The texts and tensors that a header lists."""

    metadata: Mapping[str, Any]
    entries: dict[str, Entry]


def read_header(path: Path) -> Header:
    """Return the header of a file, which may come from anybody.

    Raises:
        DataError: the file is missing or cut short, or its header lists tensors that are not there, overlap, or leave
            bytes between them.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(LONGEST, size - LENGTH_BYTES):
                raise _broken(path, f"a header of {length:,} bytes in a file of {size:,}")
            text = file.read(length)
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from None
    header = from_json(path, text, "its safetensors header")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict):
        raise _broken(path, "metadata that are no texts")
    ranges = []
    entries = {}
    for name, value in header.items():
        dtype, shape, start, end = _entry(path, name, value)
        entries[name] = Entry(dtype, shape, LENGTH_BYTES + length + start)
        ranges.append((start, end, name))
    at = 0
    for start, end, name in sorted(ranges):
        if start != at:
            raise _broken(path, f"{name!r:.100} at byte {start}, where the tensor before it ends at {at}")
        at = end
    if LENGTH_BYTES + length + at != size:
        raise _broken(path, f"{size:,} bytes where its header lists {LENGTH_BYTES + length + at:,}")
    return Header(metadata, entries)


def header_bytes(tensors: Mapping[str, DenseTensor], metadata: Mapping[str, str]) -> bytes:
    """Return what comes before the tensors, which follow in the order of the mapping."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        offsets = (end, end + tensor.nbytes)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _entry(path: Path, name: str, value: object) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, start and end of a tensor, counted from the end of the header."""
    if isinstance(value, dict):
        dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if isinstance(dtype, str) and dtype in ITEM_BYTES and _are_lengths(shape) and _are_lengths(offsets):
            size = math.prod(shape) * ITEM_BYTES[dtype]
            if len(offsets) == 2 and offsets[1] - offsets[0] == size:
                return dtype, tuple(shape), offsets[0], offsets[1]
    raise _broken(path, f"{value!r:.200} for tensor {name!r:.100}")


def _are_lengths(value: object) -> TypeGuard[list[int]]:
    """Say whether ``value`` is a short list of whole numbers that are not negative and fit 63 bits."""
    return (
        isinstance(value, list)
        and len(value) <= MOST_DIMENSIONS
        and all(type(length) is int and 0 <= length < 1 << 63 for length in value)
    )


def _broken(path: Path, what: str) -> DataError:
    return DataError(path, None, f"is not a whole safetensors file: it has {what}", "Copy or export it again.")
