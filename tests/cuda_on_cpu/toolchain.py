"""Build the emulator and kernels with g++, once: builds are kept in a folder that test processes share."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
CXX = os.environ.get("CXX", "g++")
#: IEEE arithmetic as nvcc does it with --fmad=false; -O1 takes the least time to compile and run (README.md).
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno")
#: Of UBSan's checks: not vptr, for kernels have no virtual functions. Casts of a float out of range are on: a GPU
#: saturates there and an x86 does not, so the emulator cannot say what the kernel computes.
UNDEFINED = ("-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")
SANITIZERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "ubsan": UNDEFINED,
    "asan": ("-fsanitize=address", *UNDEFINED, "-DEMU_ASAN"),
    "tsan": ("-fsanitize=thread", "-DEMU_TSAN"),
}


class BuildError(RuntimeError):
    """The compiler refused; the message is what it said."""


def missing() -> str | None:
    """Return why the emulator cannot be built here, or None."""
    if shutil.which(CXX) is None:
        return f"no C++ compiler: {CXX} is not on PATH"
    return None


def cache_folder() -> Path:
    """Return the folder of builds: PACKEDBAG_EMULATOR_CACHE, or build/cuda_on_cpu of the checkout."""
    folder = Path(os.environ.get("PACKEDBAG_EMULATOR_CACHE") or HERE.parents[1] / "build" / "cuda_on_cpu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def run_compiler(arguments: Sequence[str]) -> None:
    done = subprocess.run([CXX, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stderr)


def built(key: object, suffix: str, build: Callable[[Path], None]) -> Path:
    """Return the build with this key; one process makes it, and others that want it wait."""
    folder = cache_folder()
    target = folder / (hashlib.sha256(repr(key).encode()).hexdigest()[:24] + suffix)
    if target.exists():
        return target
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
            made = Path(scratch) / target.name
            build(made)
            made.rename(target)
    return target


@functools.cache
def emulator_sources() -> tuple[tuple[str, str], ...]:
    """Return what every build depends on: the compiler's version, the emulator's C++ and this file."""
    files = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp"), Path(__file__)])
    version = subprocess.run([CXX, "--version"], capture_output=True, text=True, check=True).stdout
    return (("compiler", version), *((path.name, path.read_text()) for path in files))


@functools.cache
def sanitizer_flags(sanitize: str) -> tuple[str, ...]:
    """Return the flags, or none where the compiler has no UBSan."""
    flags = SANITIZERS[sanitize]
    if sanitize != "ubsan":
        return flags

    def probe(made: Path) -> None:
        source = made.with_suffix(".cpp")
        source.write_text("int x;")
        try:
            run_compiler([*flags, "-fsyntax-only", str(source)])
        except BuildError:
            made.write_text("no")
        else:
            made.write_text("yes")

    return flags if built(("probe", emulator_sources()[0], flags), ".txt", probe).read_text() == "yes" else ()


@functools.cache
def runtime(sanitize: str) -> Path:
    """Return the shared object with the scheduler, never instrumented itself."""
    defines = [flag for flag in SANITIZERS[sanitize] if flag.startswith("-D")]
    flags = ["-std=c++17", "-O2", "-g0", "-fPIC", "-shared", *defines]
    sources = [str(path) for path in sorted(HERE.glob("*.cpp"))]
    key = ("runtime", emulator_sources(), flags)
    return built(
        key, ".so", lambda made: run_compiler([*flags, *sources, "-lpthread", "-lrt", "-ldl", "-o", str(made)])
    )


@functools.cache
def language(sanitize: str, arch: int) -> Path:
    """Return the header to include before a kernel, with its precompiled form beside it."""
    flags = [*FLAGS, *sanitizer_flags(sanitize), f"-D__CUDA_ARCH__={arch}"]

    def build(made: Path) -> None:
        made.mkdir()
        for header in HERE.glob("*.h"):
            shutil.copy(header, made)
        header = made / "kernel_language.h"
        run_compiler([*flags, "-x", "c++-header", str(header), "-o", f"{header}.gch"])

    return built(("language", emulator_sources(), flags), ".language", build) / "kernel_language.h"


@functools.cache
def loaded(path: Path) -> ctypes.PyDLL:
    """Return the library; calls keep the interpreter's lock, for the emulator runs one kernel at a time."""
    return ctypes.PyDLL(str(path))


def kernel_library(text: str, filename: str, *, sanitize: str, arch: int, options: Sequence[str]) -> Path:
    """Return the shared object of a kernel source, rewritten and with its entries."""
    scheduler = runtime(sanitize)
    header = language(sanitize, arch)
    flags = [*FLAGS, *sanitizer_flags(sanitize), f"-D__CUDA_ARCH__={arch}", *options]

    def build(made: Path) -> None:
        # No standard libraries: what a kernel needs of libm is in the process, and a sanitizer's runtime preloaded.
        source = made.parent / filename  # not by a pipe: debug information names the file
        source.write_text(text)
        run_compiler([*flags, "-include", str(header), "-x", "c++", str(source), "-x", "none", str(scheduler),
                      "-shared", "-nostdlib", "-o", str(made)])  # fmt: skip

    return built(("kernel", text, filename, str(header), str(scheduler), flags), ".so", build)


def source_lines(library: Path, offset: int) -> str:
    """Return the lines of source of an instruction, the innermost first, or nothing where addr2line is missing."""
    try:
        found = subprocess.run(
            ["addr2line", "-i", "-s", "-e", str(library), hex(offset)], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    lines = [line.split(" (")[0] for line in found.stdout.splitlines()]
    return ", ".join(line for line in lines if not line.startswith(("kernel_", "?", "name_expressions")))
