"""How far reading and writing of tables have come, for a progress bar that need not be handed from call to call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, Any

import numpy as np

#: Bytes that are written at once.
PIECE = 1 << 24

_watcher: ContextVar[Callable[[int], object] | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watching(watcher: Callable[[int], object]) -> Iterator[None]:
    """Have ``watcher`` called with the bytes of tables that were hashed, read or written since its last call.

    >>> with watching(print):
    ...     passed(5)
    5
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def passed(nbytes: int) -> None:
    """Report ``nbytes`` of work done to who watches."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(nbytes)


def write_array(file: IO[bytes], array: Any, dtype: str) -> None:
    """Write the elements of an array as ``dtype``, in pieces; it is not copied as a whole."""
    flat = array.reshape(-1)
    step = PIECE // np.dtype(dtype).itemsize
    for start in range(0, flat.size, step):
        part = np.ascontiguousarray(flat[start : start + step], dtype)
        file.write(part.view(np.uint8).data)
        passed(part.nbytes)
