"""Memory of this process and of the machine, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")
MEMORY = Path("/proc/meminfo")
CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Return the memory that this process holds now (VmRSS), in bytes."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most memory that this process held (VmHWM), since its start or `reset_peak`, in bytes."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Start the peak anew from what is held now; return whether the system allows that."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def available_bytes() -> int:
    """Return the memory that the machine can still give (MemAvailable), in bytes."""
    return _entry(MEMORY, "MemAvailable")


def _status(name: str) -> int:
    return _entry(STATUS, name)


def _entry(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} names no {name}")


def human(size: float) -> str:
    """Return a number of bytes for reading, in units of 1000.

    >>> human(999), human(35_400), human(1.14e9)
    ('999 B', '35.4 kB', '1.14 GB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.3g} {unit}"
