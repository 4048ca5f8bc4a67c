"""Arrays placed where a kernel's mistakes show: against an unmapped page, or off every alignment."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

PROT_NONE = 0
PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedPages:
    """Copies of arrays that end, to the byte, at a page that may not be touched; another such page lies before.

    A read or write behind the array ends the process with a segmentation fault.
    """

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []

    def place(self, array: np.ndarray | None) -> Any:
        """Return a copy of ``array`` that ends at a guard page; None for None."""
        if array is None:
            return None
        pages = -(-max(array.nbytes, 1) // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (start, start + (pages + 1) * PAGE):
            if _libc.mprotect(guard, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect refused a guard page")
        self._maps.append(memory)
        begin = (pages + 1) * PAGE - array.nbytes
        placed = np.frombuffer(memory, np.uint8, array.nbytes, begin).view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed


def misalign(array: np.ndarray | None, by: int = 1) -> Any:
    """Return a copy of ``array`` whose address is ``by`` bytes past a multiple of 64; None for None."""
    if array is None:
        return None
    memory = np.zeros(array.nbytes + 64 + by, np.uint8)
    begin = -memory.ctypes.data % 64 + by
    placed = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed
