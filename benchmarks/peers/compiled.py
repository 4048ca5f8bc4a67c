"""C of this folder, compiled for the machine that measures."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def compiled(source: Path, name: str) -> tuple[Any, str | None]:
    """Return the function ``name`` of a source file, or None and why there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None, "there is no C compiler (cc); Debian, Ubuntu: apt install gcc"
    with tempfile.TemporaryDirectory(prefix="packedbag-") as folder:
        library = Path(folder) / f"{name}.so"
        command = [compiler, *FLAGS, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"{' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}"
        return getattr(ctypes.CDLL(str(library)), name), None
