"""What NVRTC makes of a kernel: its instructions, and which of them stand together.

    python -m tests.cuda_on_cpu.machine_code "bag<int, 8, 1, 4>"

prints the disassembly for sm_90. How many loads are under way at once, and what an entry costs, can be read off it
without a GPU; what that means for time cannot.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

from packedbag.backends import cuda_kernels
from packedbag.backends.cupy_compile import ENVIRONMENT, compiled
from tests.devices import hosted

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
#: What ends a stretch of instructions that are issued one after the other, besides a label.
JUMPS = ("BRA", "BRX", "CALL", "RET", "EXIT", "BSYNC")


def disassembler() -> Path | None:
    """Return nvdisasm of the package nvidia-cuda-nvdisasm, or None where it is not installed."""
    for package in ("nvidia.cu13", "nvidia"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found = next(Path(folder).rglob("bin/nvdisasm"), None)
            if found is not None:
                return found
    return None


def missing() -> str | None:
    """Return why kernels cannot be disassembled here, or None."""
    if "PACKEDBAG_EMULATOR_SANITIZE" in os.environ:
        return "NVRTC does not run in a process that sanitizers watch"
    if disassembler() is None:
        return "the package nvidia-cuda-nvdisasm is not installed"
    if hosted() or importlib.util.find_spec("cupy") is None:
        return "CuPy, whose compiler the package uses, is not installed, or has a stand-in"
    return None


@functools.cache
def disassembled(name: str, expression: str, arch: int = 90) -> str:
    """Return one kernel's machine code as text: of the file that the package loads on a GPU of that architecture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy.cuda import nvrtc
    tool = disassembler()
    assert tool is not None
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {ENVIRONMENT: folder}):
        path, _ = compiled(name, expression, divmod(arch, 10), nvrtc)
        return subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout


def stretches(text: str) -> list[list[str]]:
    """Return the names of instructions, a list for each stretch without a jump or a label in it."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        instruction = INSTRUCTION.search(line)
        if instruction:
            found[-1].append(instruction[1])
        if line.startswith(".L") or (instruction and instruction[1] in JUMPS):
            found.append([])
    return [stretch for stretch in found if stretch]


if __name__ == "__main__":
    wanted = sys.argv[1]
    print(disassembled(next(name for name, each in cuda_kernels.every_instance() if each == wanted), wanted))
