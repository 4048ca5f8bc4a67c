"""How far reading and writing of tables have come, for a progress bar that need not be handed from call to call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO

from packedbag.io.dense_tensor import DenseTensor

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


def write_tensor(file: IO[bytes], tensor: DenseTensor) -> None:
    """Write the bytes of a tensor, piece by piece."""
    for piece in tensor.pieces():
        file.write(piece)
        passed(len(piece))
