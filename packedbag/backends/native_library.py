"""The compiled library of `cpu/`: where it is, why it may be missing, and its functions.

Each function takes one block of 8-byte fields, the structs of ``cpu/packedbag.h``. A ctypes call with twelve
arguments costs 1.2 us; packing them with `struct` and passing the block costs 0.3 us.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

import packedbag.backends
from packedbag.core.errors import BackendError

FILE = "libpackedbag_cpu.so"
#: A library to load instead of the installed one, for instance a build with sanitizers.
ENVIRONMENT = "PACKEDBAG_NATIVE_LIBRARY"
#: PB_ABI_VERSION of cpu/packedbag.h.
ABI_VERSION = 7
NAME = "native_cpu"
INSTALL = "pip install --force-reinstall --no-deps packedbag (from a checkout: pip install --no-deps -e .)"

# The fields of each struct in cpu/packedbag.h: q is int64_t or a pointer, d double, Q uint64_t.
BAG = Struct("16q").pack
KEEP = Struct("11q").pack
MAX_COLUMNS = Struct("6q").pack
MERGE = Struct("5q").pack
SUM_ROWS = Struct("11qdq").pack
ROW_DOT = Struct("10q").pack
COUNTER_UPDATE = Struct("10qdq3d2qQ5q").pack
HAMMING = Struct("7q").pack
NEAREST = Struct("9q").pack
COUNTER_STEP = Struct("11qdq" + "10qdq3d2qQ5q").pack


def path() -> Path | None:
    """Return where the library is, or None. An editable install keeps it apart from the sources."""
    forced = os.environ.get(ENVIRONMENT)
    if forced:
        return Path(forced)
    candidates = (Path(folder) / FILE for folder in packedbag.backends.__path__)
    return next((file for file in candidates if file.exists()), None)


def missing() -> str | None:
    """Return why the library cannot be used here, or None."""
    return _open()[1]


def load() -> ctypes.CDLL:
    """Return the library, or raise `BackendError` with the reason."""
    library, reason = _open()
    if library is None:
        raise BackendError(NAME, f"cannot run here: {reason}", "eager, reference")
    return library


@functools.cache
def _open() -> tuple[ctypes.CDLL | None, str | None]:
    file = path()
    if file is None:
        return None, (
            f"{FILE} was not built, because packedbag was installed without a C++17 compiler (or is used without "
            f"being installed). Install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) and run: "
            f"{INSTALL}"
        )
    try:
        library = _dlopen(file)
    except OSError as error:
        return None, f"{file} cannot be loaded: {error}"
    try:
        library.pb_abi_version.restype = ctypes.c_int64
        version = library.pb_abi_version()
    except AttributeError:
        return None, f"{file} is not a library of packedbag: it has no pb_abi_version. Run: {INSTALL}"
    if version != ABI_VERSION:
        return None, (
            f"{file} has ABI version {version} and this packedbag needs {ABI_VERSION}: "
            f"library and Python files are of different releases. Run: {INSTALL}"
        )
    return _declare(library), None


def _dlopen(file: Path) -> ctypes.CDLL:
    """Open ``file``; where the system has no libgomp, the one that torch brings along serves."""
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        torch = importlib.util.find_spec("torch") if "libgomp" in str(error) else None
        for folder in (torch and torch.submodule_search_locations) or ():
            bundled = Path(folder) / "lib" / "libgomp.so.1"
            if bundled.exists():
                ctypes.CDLL(str(bundled))
                return ctypes.CDLL(str(file))
        raise


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Set the signature of every function once."""
    for name, result in (
        ("pb_bag", ctypes.c_int64),
        ("pb_keep", ctypes.c_int64),
        ("pb_max_columns", None),
        ("pb_merge", ctypes.c_int64),
        ("pb_sum_rows", None),
        ("pb_row_dot", None),
        ("pb_counter_update", None),
        ("pb_counter_step", ctypes.c_int64),
        ("pb_hamming", None),
        ("pb_nearest", ctypes.c_int64),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_char_p], result
    library.pb_isa_name.argtypes, library.pb_isa_name.restype = [ctypes.c_int64], ctypes.c_char_p
    library.pb_isa_usable.argtypes, library.pb_isa_usable.restype = [ctypes.c_int64], ctypes.c_int64
    library.pb_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.pb_advise_huge_pages.restype = ctypes.c_int64
    library.pb_threads.argtypes, library.pb_threads.restype = [], ctypes.c_int64
    library.pb_set_threads.argtypes, library.pb_set_threads.restype = [ctypes.c_int64], None
    return library


# CPython lays an ndarray out as the object header followed by its data pointer. Reading it there costs 0.17 us;
# array.ctypes.data costs 0.97 us, and a call needs up to six of them.
_HEADER = object.__basicsize__
_read = ctypes.c_size_t.from_address


def _layout_holds() -> bool:
    probe = np.arange(3)
    return bool(_read(id(probe) + _HEADER).value == probe.ctypes.data)


_LAYOUT_HOLDS = _layout_holds()


def address(array: Any) -> int:
    """Return where the data of a NumPy array or a CPU torch tensor starts, 0 for None."""
    if array is None:
        return 0
    if isinstance(array, np.ndarray):
        return _read(id(array) + _HEADER).value if _LAYOUT_HOLDS else array.ctypes.data
    pointer: int = array.data_ptr()
    return pointer
