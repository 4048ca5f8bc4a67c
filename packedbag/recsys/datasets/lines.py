"""Text files, plain or gzip, line by line, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from packedbag.core.errors import DataError


def open_text(path: str | os.PathLike[str]) -> IO[str]:
    """Open a UTF-8 text file for reading; ``.gz`` is decompressed as it is read.

    Raises:
        DataError: it is not there, is a folder, or may not be read.
    """
    try:
        raw = gzip.open(path, "rb") if Path(path).suffix == ".gz" else Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}") from None
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of a text file, their ends included, holding one at a time.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or its compressed data end too soon.
    """
    number = 0
    with open_text(path) as file:
        while True:
            try:
                line = file.readline()
            except UnicodeDecodeError as error:
                raise DataError(path, number + 1, f"is not UTF-8 text ({error.reason})", "Convert the file.") from None
            except EOFError:
                raise DataError(path, number + 1, "the compressed file ends too soon", "Fetch it again.") from None
            except (OSError, zlib.error) as error:
                problem = getattr(error, "strerror", None) or str(error)
                raise DataError(path, number + 1, f"cannot be read: {problem}") from None
            if not line:
                return
            number += 1
            yield line
