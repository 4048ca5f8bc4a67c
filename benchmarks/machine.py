"""The machine and the software that numbers belong to."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import packedbag
from benchmarks.memory import processor
from packedbag import backends
from packedbag.backends import native_cpu

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: What the last cache is taken for where the system does not say.
USUAL_CACHE = 32 << 20


def caches() -> list[str]:
    """Return the caches of the first core, such as ``L2 1024K``."""
    found = []
    for folder in sorted(CACHES.glob("index*")):
        kind = (folder / "type").read_text().strip()
        if kind != "Instruction":
            found.append(f"L{(folder / 'level').read_text().strip()} {(folder / 'size').read_text().strip()}")
    return found


def last_cache_bytes() -> int:
    """Return the size of the largest cache."""
    sizes = [text.split()[1] for text in caches()]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes if size[-1:] in UNITS), default=USUAL_CACHE)


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, Any]:
    """Return what a reader must know to compare."""
    return {
        "processor": processor(),
        "caches": caches(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "huge_pages": HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else "unknown",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "fbgemm-gpu-cpu": version("fbgemm-gpu-cpu"),
        "packedbag": packedbag.__version__,
        "backend": backends.select("cpu").name,
        "isas": [] if native_cpu.missing() else list(native_cpu.isas()),
    }
