"""Replace a file so that a reader, a crash or a full disk always leaves one whole version of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    The order is write, fsync, rename, fsync of the folder: after a power cut the name leads to the whole old
    file or to the whole new one. On any error, a full disk included, the temporary file is removed and the old
    file is left as it was.

    Args:
        path: the file to replace or create; its folder must exist.

    Raises:
        OSError: the file cannot be written; ``path`` is unchanged.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a") as file:
    ...     _ = file.write(b"whole")
    >>> (folder / "a").read_bytes()
    b'whole'
    """
    target = Path(path)
    # The name comes first: Ctrl-C may arrive as soon as there is a file.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete the temporary files that a killed process left while replacing ``path``."""
    target = Path(path)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
