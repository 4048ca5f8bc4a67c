"""A checkpoint of `torch.save`, read without torch: its structure at once, its tensors piece by piece."""

from __future__ import annotations

import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import DataError
from packedbag.io.dense_tensor import ITEM_BYTES, PIECE, DenseTensor, file_pieces
from packedbag.io.torch_pickle import TensorRef, load_structure

#: Bytes of a pickle, at most. It holds names and numbers; tensors lie beside it.
LONGEST_PICKLE = 1 << 28
MOST_DIMENSIONS = 64
#: Bytes of the header of an entry, before its name.
LOCAL_HEADER = 30
#: How a checkpoint begins that torch wrote before it wrote zip files, in 2020.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: An expanded tensor may have more elements than the file, up to these bytes.
EXPANDED_BYTES = 1 << 20
AGAIN = "Copy or save it again."


class _Entry(NamedTuple):
    """Where an entry of the zip file lies."""

    start: int
    size: int
    crc: int


class TorchFile:
    """A checkpoint in the zip format of `torch.save`.

    Args:
        path: the file, from anybody. Nothing in it is executed.
        read: called with the number of bytes after each piece that was read of a tensor.

    Attributes:
        content: what was saved: dicts, lists, numbers, texts, `Foreign` objects, and a `TensorRef` for each tensor.

    Raises:
        DataError: the file is missing, cut short, damaged, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], read: Callable[[int], object] = lambda nbytes: None) -> None:
        self.path = Path(path)
        self._read = read
        self._check_start()
        try:
            self._entries = self._list()
        except DataError:
            raise
        except Exception as error:  # zipfile raises errors of many classes for files that are none
            raise self._broken(f"it is no whole zip file ({error!s:.100})") from None
        # torch.serialization.set_crc32_options(False) leaves all of them 0.
        self._checks = any(entry.crc for entry in self._entries.values())
        self._verified: set[str] = set()
        pickles = [name for name in self._entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise self._broken("it is a zip file without one data.pkl")
        self._folder = pickles[0][: -len("data.pkl")]
        order = self._whole(self._folder + "byteorder", 100) if self._folder + "byteorder" in self._entries else b""
        if order and order != sys.byteorder.encode():
            raise DataError(
                path, None, f"has the byte order {order.decode('latin-1')}", "Save it again on this machine."
            )
        data = self._whole(pickles[0], LONGEST_PICKLE)
        try:
            self.content = load_structure(data)
        except Exception as error:  # whatever a foreign pickle makes Python raise
            raise self._broken(f"its pickle is broken ({type(error).__name__}: {error!s:.100})") from None

    def check(self, tensor: TensorRef, name: str) -> None:
        """Raise `DataError` unless a tensor lies within its storage, and that in the file."""
        try:
            item, entry = ITEM_BYTES[tensor.dtype], self._entry(tensor)
            lengths = (*tensor.shape, *tensor.strides, tensor.offset, tensor.storage.numel)
            well_formed = (
                isinstance(tensor.shape, tuple)
                and isinstance(tensor.strides, tuple)
                and len(tensor.shape) == len(tensor.strides) <= MOST_DIMENSIONS
                and all(type(length) is int and 0 <= length < 1 << 62 for length in lengths)
                and tensor.storage.numel * ITEM_BYTES[tensor.storage.dtype] == entry.size
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._broken(f"tensor {name!r:.100} is of no known kind ({error!s:.100})") from None
        if not well_formed:
            raise self._broken(f"tensor {name!r:.100} is described by impossible numbers")
        numel = math.prod(tensor.shape)
        last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        if numel and (last + 1) * item > entry.size:
            raise self._broken(f"tensor {name!r:.100} reaches beyond its storage")
        if numel * item > max(entry.size, EXPANDED_BYTES):
            problem = f"tensor {name!r:.100} is expanded: {numel * item:,} bytes from {entry.size:,}"
            raise DataError(self.path, None, problem, "Save it as tensor.contiguous().")

    def pieces(self, tensor: TensorRef, row_bytes: int = 1) -> Iterator[bytes]:
        """Yield the bytes of a tensor that was checked, in C order, a few MB at once.

        Args:
            tensor: of `content`.
            row_bytes: pieces hold multiples of these, except for the last.

        Raises:
            DataError: the file is damaged; the last piece may have come already.
        """
        entry, item = self._entry(tensor), ITEM_BYTES[tensor.dtype]
        step = max(1, PIECE // row_bytes) * row_bytes
        size = math.prod(tensor.shape) * item
        start = tensor.offset * item
        if not size:
            return
        if not _is_contiguous(tensor):
            self._verify(tensor.storage.key)
            yield from self._strided_pieces(tensor, step)
        elif size == entry.size:
            yield from self._checked(tensor.storage.key, step)
        else:
            self._verify(tensor.storage.key)
            for piece in file_pieces(self.path, entry.start + start, size, step):
                yield piece
                self._read(len(piece))

    def dense(self, tensor: TensorRef) -> DenseTensor:
        """Return a tensor that was checked; it stays in the file."""
        return DenseTensor(tensor.dtype, tensor.shape, lambda: self.pieces(tensor))

    def _strided_pieces(self, tensor: TensorRef, step: int) -> Iterator[bytes]:
        """Yield a tensor that is a view of another order, which is mapped."""
        item = ITEM_BYTES[tensor.dtype]
        start = self._entry(tensor).start + tensor.offset * item
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        mapped: npt.NDArray[Any] = np.memmap(self.path, f"<u{item}", "r", start, (last + 1,))
        strides = [stride * item for stride in tensor.strides]
        whole = np.lib.stride_tricks.as_strided(mapped, tensor.shape, strides, writeable=False)
        rows = max(1, step * tensor.shape[0] // (whole.size * item))
        for first in range(0, tensor.shape[0], rows):
            piece = whole[first : first + rows].tobytes()
            yield piece
            self._read(len(piece))

    def _checked(self, key: str, step: int) -> Iterator[bytes]:
        """Yield a storage; raise at its end if its checksum is not the file's."""
        entry, crc = self._entries[f"{self._folder}data/{key}"], 0
        for piece in file_pieces(self.path, entry.start, entry.size, step):
            crc = zlib.crc32(piece, crc)
            yield piece
            self._read(len(piece))
        self._compare(entry, crc, f"the storage of tensor data/{key}")
        self._verified.add(key)

    def _verify(self, key: str) -> None:
        """Compare the checksum of a storage, once: several tensors may be views of one."""
        if key in self._verified:
            return
        entry, crc = self._entries[f"{self._folder}data/{key}"], 0
        for piece in file_pieces(self.path, entry.start, entry.size):
            crc = zlib.crc32(piece, crc)
        self._compare(entry, crc, f"the storage of tensor data/{key}")
        self._verified.add(key)

    def _whole(self, name: str, most: int) -> bytes:
        entry = self._entries[name]
        if entry.size > most:
            raise self._broken(f"{name} has {entry.size:,} bytes; {most:,} are allowed")
        data = b"".join(file_pieces(self.path, entry.start, entry.size))
        self._compare(entry, zlib.crc32(data), name)
        return data

    def _compare(self, entry: _Entry, crc: int, what: str) -> None:
        if self._checks and crc != entry.crc:
            raise self._broken(f"the checksum of {what} differs")

    def _entry(self, tensor: TensorRef) -> _Entry:
        return self._entries[f"{self._folder}data/{tensor.storage.key}"]

    def _check_start(self) -> None:
        try:
            with self.path.open("rb") as file:
                start = file.read(len(LEGACY))
        except OSError as error:
            raise DataError(self.path, None, f"cannot be read ({error.strerror})") from None
        if start == LEGACY:
            raise DataError(
                self.path,
                None,
                "has the format that torch.save had before torch 1.6",
                "Save it again: torch.save(torch.load(old, weights_only=True), new).",
            )
        if start[:4] != b"PK\x03\x04":
            raise DataError(self.path, None, "is no checkpoint of torch.save: it begins with other bytes")

    def _list(self) -> dict[str, _Entry]:
        """Return where the entries lie, by name."""
        found = {}
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with zipfile.ZipFile(file) as archive:
                listed = archive.infolist()
            for info in listed:
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise self._broken(f"{info.filename!r:.100} is compressed or encrypted; torch does neither")
                file.seek(info.header_offset)
                header = file.read(LOCAL_HEADER)
                start = info.header_offset + LOCAL_HEADER
                start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                if header[:4] != b"PK\x03\x04" or start + info.file_size > size or info.filename in found:
                    raise self._broken(f"{info.filename!r:.100} is not where the file says, or twice")
                found[info.filename] = _Entry(start, info.file_size, info.CRC)
        return found

    def _broken(self, problem: str) -> DataError:
        return DataError(self.path, None, f"is not a whole checkpoint of torch.save: {problem}", AGAIN)


def _is_contiguous(tensor: TensorRef) -> bool:
    expected = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True
