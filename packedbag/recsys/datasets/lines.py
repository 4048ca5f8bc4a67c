"""Text files, plain or gzip, line by line, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from packedbag.core.errors import DataError

BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, their ends included, holding one at a time.

    A file whose name ends in ``.gz`` is decompressed as it is read. Lines are decoded one by one, so that an
    error names the very line.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or its compressed data end too soon.
    """
    number = 0
    with _open(path) as file:
        while True:
            try:
                raw = file.readline()
            except EOFError:
                raise DataError(path, number + 1, "the compressed file ends too soon", "Fetch it again.") from None
            except (OSError, zlib.error) as error:
                problem = getattr(error, "strerror", None) or str(error)
                raise DataError(path, number + 1, f"cannot be read: {problem}") from None
            if not raw:
                return
            number += 1
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(path, number, f"is not UTF-8 text ({error.reason})", "Convert the file.") from None
            yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def identity(path: str | os.PathLike[str]) -> str:
    """Return the file's name and size, by which a resumed run knows its data; the folder may be another.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return f"{Path(path).name} ({Path(path).stat().st_size} bytes)"
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}") from None


def _open(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says so itself
            raise DataError(
                path, None, "is a pipe or a device; a file is read several times", "Write the data to a file first."
            )
        return cast(IO[bytes], gzip.open(path, "rb")) if Path(path).suffix == ".gz" else Path(path).open("rb")
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}") from None
