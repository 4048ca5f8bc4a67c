"""Memory for tables, on huge pages or on none, and how much of it the system really put on huge pages."""

from __future__ import annotations

import mmap
import re
from math import prod
from pathlib import Path

import numpy as np
import torch

HUGE_PAGE = 2 << 20
#: linux/mman.h; Python's mmap names it only where the system's headers do.
MADV_HUGEPAGE, MADV_NOHUGEPAGE = 14, 15


def on_huge_pages(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return zeroed memory that is advised before its first write: that write decides a page's size."""
    return _mapped(shape, dtype, MADV_HUGEPAGE)


def on_small_pages(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return zeroed memory that stays on 4 KB pages, whatever the system's default is."""
    return _mapped(shape, dtype, MADV_NOHUGEPAGE)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, advice: int) -> torch.Tensor:
    """Map new memory: malloc may hand out what was freed, whose pages are there already, whatever is advised now."""
    size = prod(shape) * dtype.itemsize
    # Private: a shared mapping is a file in memory, for which the system has a rule of its own on huge pages.
    mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = np.frombuffer(mapping, np.uint8).ctypes.data
    offset = -base % HUGE_PAGE
    mapping.madvise(advice)
    return torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=offset).view(dtype).view(shape)


def share_on_huge_pages(table: torch.Tensor) -> float | None:
    """Return which part of a table lies on huge pages, 0 to 1, or None where the system does not say.

    The system counts by mapping, and one may hold other memory too: a mapping's huge pages are taken for the
    table's as far as the table reaches into it.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.exists() or not table.nbytes:
        return None
    begin, end = table.data_ptr(), table.data_ptr() + table.nbytes
    overlap = huge = 0
    for line in smaps.read_text().splitlines():
        header = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if header:
            overlap = min(int(header[2], 16), end) - max(int(header[1], 16), begin)
        elif overlap > 0 and line.startswith("AnonHugePages:"):
            huge += min(int(line.split()[1]) << 10, overlap)
    return huge / table.nbytes
