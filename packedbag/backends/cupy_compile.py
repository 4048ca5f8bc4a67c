"""Compiles CUDA kernels to machine code with CuPy's NVRTC, and keeps them on disk.

Not with `cupy.RawModule`, which loads them: it compiles with ``-ftz=true`` and lets nobody say otherwise. Subnormal
numbers would then be 0 on a GPU alone, and a step would not give the bits of a CPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packedbag.backends import cuda_kernels

#: Another folder for compiled kernels.
ENVIRONMENT = "PACKEDBAG_CUDA_CACHE"


def cache_folder() -> Path:
    """Return where compiled kernels are kept: the environment's folder, or the user's cache."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packedbag" / "cuda"


def target(capability: tuple[int, int], supported: tuple[int, ...]) -> tuple[str, bool]:
    """Return the option that names the architecture, and whether machine code comes out of it, not PTX.

    >>> target((9, 0), (75, 80, 90)), target((12, 1), (75, 80, 90))
    (('-arch=sm_90', True), ('-arch=compute_90', False))
    """
    wanted = capability[0] * 10 + capability[1]
    if wanted in supported:
        return f"-arch=sm_{wanted}", True
    older = [arch for arch in supported if arch < wanted]
    return f"-arch=compute_{max(older, default=min(supported))}", False


def compiled(name: str, expression: str, capability: tuple[int, int], nvrtc: Any) -> tuple[Path, str]:
    """Return the file of a compiled instance and the symbol in it; compile it unless that was done before.

    Args:
        name, expression: of `packedbag.backends.cuda_kernels`.
        capability: of the GPU, such as (9, 0).
        nvrtc: the module cupy.cuda.nvrtc.
    """
    source = cuda_kernels.source(name)
    option, is_machine_code = target(capability, nvrtc.getSupportedArchs())
    key = repr((source, expression, cuda_kernels.OPTIONS, option, nvrtc.getVersion()))
    folder = _writable(cache_folder())
    # The symbol is part of the name, so that a file says all that loading it takes.
    stem = hashlib.sha256(key.encode()).hexdigest()[:32]
    suffix = ".cubin" if is_machine_code else ".ptx"
    found = next(folder.glob(f"{stem}-*{suffix}"), None)
    if found is not None:
        return found, found.name[len(stem) + 1 : -len(suffix)]
    program = nvrtc.createProgram(source, cuda_kernels.KERNELS[name].file, (), ())
    try:
        nvrtc.addNameExpression(program, expression)
        try:
            with _alone_at_first():
                nvrtc.compileProgram(program, (*cuda_kernels.OPTIONS, option))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"{expression}: {nvrtc.getProgramLog(program)}") from error
        symbol: str = nvrtc.getLoweredName(program, expression)
        code: bytes = whole(nvrtc.getCUBIN(program)) if is_machine_code else nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    path = folder / f"{stem}-{symbol}{suffix}"
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(code)
    Path(file.name).replace(path)  # whole, or not there: other processes look for it
    return path, symbol


def whole(code: bytes) -> bytes:
    """Return machine code, an ELF file, with all the bytes that its header says it has.

    CuPy 14 takes the last one, a zero, for the end of a string and drops it. CuPy itself hands the code to the driver
    in memory, where Python ends bytes with a zero; a file is one byte short, and refused.
    """
    if not code.startswith(b"\x7fELF"):
        return code
    (programs, sections), sizes = struct.unpack_from("<2Q", code, 32), struct.unpack_from("<4H", code, 54)
    return code.ljust(max(programs + sizes[0] * sizes[1], sections + sizes[2] * sizes[3]), b"\0")


_first, _compiled_before = threading.Lock(), threading.Event()


@contextlib.contextmanager
def _alone_at_first() -> Iterator[None]:
    """Let no thread compile beside the first one that does.

    NVRTC opens its library of built-ins then; a thread that comes meanwhile is told that there is none (13.0).
    """
    if _compiled_before.is_set():
        yield
        return
    with _first:
        yield
        _compiled_before.set()


@functools.cache  # the replacement is one folder for all kernels of the process
def _writable(folder: Path) -> Path:
    """Return ``folder``, made; or one for this process where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="packedbag-cuda-"))
