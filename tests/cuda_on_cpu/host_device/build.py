"""Builds the library that gives torch its devices. Does not import torch, which has to come after the library."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from tests.cuda_on_cpu import toolchain

HERE = Path(__file__).parent
#: As torch's headers need it. Tests are to run soon, so that little is optimized.
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-w")


def torch_folder() -> Path:
    """Return where torch is installed."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("torch is not installed")
    return Path(found.origin).parent


def library() -> ctypes.CDLL:
    """Build the library unless that was done before, and load it."""
    folder = torch_folder()
    sources = sorted(HERE.glob("*.cpp"))
    texts = [path.read_text() for path in [*sources, *sorted(HERE.glob("*.h"))]]
    includes = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]

    def build(target: Path) -> None:
        libraries = (f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder / 'lib'}")
        toolchain.run_compiler([*FLAGS, *includes, "-shared", *map(str, sources), "-o", str(target), *libraries])

    key = ("host_device", texts, FLAGS, (folder / "version.py").read_text())
    return ctypes.CDLL(str(toolchain.built(key, ".so", build)))
