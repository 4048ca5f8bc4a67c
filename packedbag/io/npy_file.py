"""``.npy``: the words alone, as NumPy writes arrays, and a sidecar ``.npy.json`` that says what they mean.

The sidecar is renamed last, and holds a fingerprint of some of the words: a pair that does not belong together is found
when it is opened. A scale of each row is a second array, ``.npy.scale.npy``.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from packedbag.core.errors import ArgumentError, DataError
from packedbag.core.layout import words_per_row
from packedbag.io.atomic import replacing
from packedbag.io.dense_tensor import DenseTensor
from packedbag.io.description import describe, described, mapped, only, table_scale
from packedbag.io.stored import Arrays, StoredTable, as_json, from_json
from packedbag.io.watch import write_tensor
from packedbag.table import PackedTable

#: Bytes of a sidecar, at most.
LONGEST = 1 << 24
#: The fingerprint is of this many pieces of this many bytes, spread over the words.
PIECES, PIECE = 16, 4096


def sidecar(path: Path) -> Path:
    """Return where the description of ``path`` lies."""
    return path.with_name(path.name + ".json")


def scales(path: Path) -> Path:
    """Return where the rows' scales of ``path`` lie."""
    return path.with_name(path.name + ".scale.npy")


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table: words, the scales of its rows, and last the sidecar, each in one atomic step.

    Args:
        path: the file to create or replace; the others have its name and more.
        tables: one, by its name. Its ``metadata`` must be JSON.

    Raises:
        ArgumentError: there are several tables, or the metadata are no JSON.
        OSError: a file cannot be written; the old ones are unchanged. All are on the disk before the first is renamed;
            a process that is killed between two renames leaves files that `read` refuses.
    """
    target = Path(path)
    name, table = only(tables, ".npy")
    said = describe(table, name, with_scale=True)
    rows_scale = table.scale if said["scale"] == "row" else None
    said["fingerprint"] = _fingerprint_of(np.asarray(table.words, "<u4"))
    if rows_scale is not None:
        said["scale_fingerprint"] = _fingerprint_of(np.asarray(rows_scale, "<f4"))
    text = as_json(said, "metadata").encode()
    if len(text) > LONGEST:
        raise ArgumentError("metadata", f"{len(text)} bytes of JSON", f"at most {LONGEST}", "Keep them elsewhere.")
    with contextlib.ExitStack() as files:  # the last one opened is the first one renamed
        last = files.enter_context(replacing(sidecar(target)))
        last.write(text)
        written = [last]
        if rows_scale is not None:
            written.append(files.enter_context(replacing(scales(target))))
            _write(written[-1], rows_scale, "<f4")
        written.append(files.enter_context(replacing(target)))
        _write(written[-1], table.words, "<u4")
        for file in written:
            file.flush()
            os.fsync(file.fileno())
    if rows_scale is None:
        scales(target).unlink(missing_ok=True)  # of an older table


def read(path: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Return what the sidecar of an ``.npy`` file says.

    Raises:
        DataError: a file of the two is missing, cut short, or damaged, or they do not belong together.
    """
    target = Path(path)
    try:
        with sidecar(target).open("rb") as file:
            text = file.read(LONGEST + 1)
    except OSError as error:
        advice = "Without it words have no D: PackedTable(numpy.load(path), D) takes them."
        raise DataError(sidecar(target), None, f"cannot be read ({error.strerror})", advice) from None
    if len(text) > LONGEST:
        raise DataError(sidecar(target), None, f"has more than {LONGEST} bytes")
    said = from_json(sidecar(target), text, "the sidecar")

    def arrays(mmap: bool) -> Arrays:
        words = mapped(target, "<u4", start, shape, mmap)
        if stored.scale_kind is None:
            return words, None
        if stored.scale_kind == "table":
            return words, table_scale(sidecar(target), said)
        return words, mapped(scales(target), "<f4", _start(scales(target), "<f4", shape[:1]), shape[:1], mmap=False)

    stored = described(target, said, arrays)
    shape = stored.num_embeddings, words_per_row(stored.embedding_dim)
    start = _start(target, "<u4", shape)
    if stored.scale_kind == "table":
        table_scale(sidecar(target), said)
    if stored.scale_kind == "row":
        first = _start(scales(target), "<f4", shape[:1])
        if said.get("scale_fingerprint") != _fingerprint_of_file(scales(target), first, 4 * shape[0]):
            raise _mismatch(scales(target), "their fingerprints differ", sidecar(target))
    if said.get("fingerprint") != _fingerprint_of_file(target, start, 4 * math.prod(shape)):
        raise _mismatch(target, "their fingerprints differ")
    return {stored.name: stored}


def _write(file: IO[bytes], array: Any, dtype: str) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    write_tensor(file, DenseTensor.of(array))


def _start(path: Path, dtype: str, shape: tuple[int, ...]) -> int:
    """Return the first byte of an array, whose header and length were checked."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, fortran, seen = reader(file)
            start = file.tell()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, TokenError) as error:
        raise DataError(path, None, f"is no .npy file ({error!s:.100})") from None
    if (found, seen) != (shape, np.dtype(dtype)) or (fortran and min(shape, default=0) > 1):
        raise _mismatch(path, f"an array of {seen} {found} is not one of {dtype} {shape}")
    expected = start + math.prod(shape) * np.dtype(dtype).itemsize
    if size != expected:
        raise DataError(path, None, f"has {size} bytes; its header says {expected}", "It was cut short: copy it again.")
    return start


def _fingerprint(size: int, read: Callable[[int, int], bytes | memoryview]) -> str:
    """Return a hash of some of ``size`` bytes of words; ``read`` returns those from a byte to another."""
    step = max(PIECE, (size - PIECE) // (PIECES - 1))
    digest = hashlib.sha256()
    for start in [*range(0, max(size - PIECE, 1), step), max(0, size - PIECE)]:
        digest.update(read(start, min(start + PIECE, size)))
    return digest.hexdigest()


def _fingerprint_of(array: Any) -> str:
    content = array.reshape(-1).view(np.uint8)
    return _fingerprint(content.size, lambda start, end: content[start:end].data)


def _fingerprint_of_file(path: Path, start: int, size: int) -> str:
    """Read pieces, not pages of a map: a map takes the pages around each piece as well."""
    with path.open("rb") as file:

        def read(first: int, end: int) -> bytes:
            file.seek(start + first)
            return file.read(end - first)

        return _fingerprint(size, read)


def _mismatch(path: Path, why: str, described_by: Path | None = None) -> DataError:
    return DataError(
        path,
        None,
        f"does not belong to its sidecar {(described_by or sidecar(path)).name}: {why}",
        "One of them was copied or written without the other. `packedbag verify` compares all of their words.",
    )
