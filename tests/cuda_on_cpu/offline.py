"""Compile CUDA sources for any architecture, without a GPU, a driver or CuPy, and read what ptxas says of each kernel.

NVRTC, which CuPy uses too, is taken from the wheel `nvidia-cuda-nvrtc`; where that is missing, nvcc from PATH.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
#: As the package compiles: products are rounded before they are added.
OPTIONS = ("--std=c++17", "--fmad=false", "-ftz=false")
COMPILING = re.compile(r"Compiling entry function '(\S+)'")
PROPERTIES = re.compile(r"Function properties for '?([^\s']+)'?")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class OfflineError(RuntimeError):
    """The compiler refused a source; the message is its log."""


@dataclass(frozen=True)
class Report:
    """What ptxas says of one kernel: registers a thread; bytes of stack and spills a thread, of shared memory a block.

    Spills of a function that is not inlined count for every kernel of its source.
    """

    name: str
    arch: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0


def missing(arch: int | None = None) -> str | None:
    """Return why nothing can be compiled here (for this architecture), or None."""
    tool = compiler()
    if tool is None:
        return "neither the package nvidia-cuda-nvrtc nor nvcc is installed"
    if arch is not None and arch not in tool.architectures():
        return f"{tool.name} knows no sm_{arch}"
    return None


def compile_source(
    code: str,
    names: Sequence[str],
    arch: int,
    *,
    filename: str,
    options: Sequence[str] = (),
    tool: Compiler | None = None,
) -> list[Report]:
    """Compile the named kernels of a source in one go.

    Args:
        code: the source.
        names: kernels, or name expressions such as `count<int, 4>`.
        arch: 90 for sm_90.
        filename: what messages call the source.
        options: in addition to `OPTIONS`.
        tool: the compiler; None takes the first there is.

    Raises:
        OfflineError: it does not compile, or there is no compiler.
    """
    tool = tool or compiler()
    if tool is None:
        raise OfflineError(str(missing()))
    flags = list(dict.fromkeys((*OPTIONS, *options, f"-arch=sm_{arch}", "--ptxas-options=-v")))
    lowered, log = tool.compile(code, list(names), filename, flags)
    return reports(log, lowered, arch)


def reports(log: str, lowered: dict[str, str], arch: int) -> list[Report]:
    """Return a report for each name, whose mangled form `lowered` holds."""
    kernels: dict[str, dict[str, int]] = {}
    inner_stores = inner_loads = 0
    entry = described = ""
    for line in log.splitlines():
        if found := COMPILING.search(line):
            entry = found[1]
            kernels[entry] = dict.fromkeys(("registers", "stack", "spill_stores", "spill_loads", "shared"), 0)
        elif found := PROPERTIES.search(line):
            described = found[1]
        elif found := FRAME.search(line):
            stack, stores, loads = map(int, found.groups())
            if described in kernels:
                kernels[described].update(stack=stack, spill_stores=stores, spill_loads=loads)
            else:
                inner_stores, inner_loads = inner_stores + stores, inner_loads + loads
        elif found := REGISTERS.search(line):
            kernels[entry]["registers"] = int(found[1])
            shared = SHARED.search(line)
            kernels[entry]["shared"] = int(shared[1]) if shared else 0
    made = []
    for name, mangled in lowered.items():
        if mangled not in kernels:
            raise OfflineError(f"ptxas says nothing of {name} ({mangled}):\n{log}")
        values = kernels[mangled]
        values["spill_stores"] += inner_stores
        values["spill_loads"] += inner_loads
        made.append(Report(name, arch, **values))
    return made


class Compiler:
    """A way to compile."""

    name: str

    def architectures(self) -> tuple[int, ...]:
        raise NotImplementedError

    def compile(self, code: str, names: list[str], filename: str, flags: list[str]) -> tuple[dict[str, str], str]:
        """Return the mangled form of each name, and the log of ptxas."""
        raise NotImplementedError


class Nvrtc(Compiler):
    """NVRTC through ctypes, which needs no CUDA toolkit and no driver."""

    name = "NVRTC"

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        if status:
            raise OfflineError(self.library.nvrtcGetErrorString(status).decode())

    @functools.cache  # noqa: B019 - one compiler lives as long as the process
    def architectures(self) -> tuple[int, ...]:
        count = ctypes.c_int()
        self.check(self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        values = (ctypes.c_int * count.value)()
        self.check(self.library.nvrtcGetSupportedArchs(values))
        return tuple(values)

    def compile(self, code: str, names: list[str], filename: str, flags: list[str]) -> tuple[dict[str, str], str]:
        library, program = self.library, ctypes.c_void_p()
        self.check(library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), filename.encode(), 0, None, None))
        try:
            for name in names:
                self.check(library.nvrtcAddNameExpression(program, name.encode()))
            arguments = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            status = library.nvrtcCompileProgram(program, len(flags), arguments)
            log = self.log(program)
            if status:
                raise OfflineError(f"{filename} does not compile:\n{log}")
            return {name: self.lowered(program, name) for name in names}, log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self.check(self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(max(1, size.value))
        self.check(self.library.nvrtcGetProgramLog(program, text))
        return text.value.decode()

    def lowered(self, program: ctypes.c_void_p, name: str) -> str:
        mangled = ctypes.c_char_p()
        self.check(self.library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(mangled)))
        assert mangled.value is not None
        return mangled.value.decode()


class Nvcc(Compiler):
    """nvcc from PATH. It has no name expressions: a marker kernel names each instance in its own mangled name."""

    name = "nvcc"
    MARKER = "template <auto *kernel, int number> __global__ void offline_marker() {}"
    MARKED = re.compile(r"void offline_marker<&\(?(.*?)\)?, (\d+)>\(\)")

    @functools.cache  # noqa: B019 - one compiler lives as long as the process
    def architectures(self) -> tuple[int, ...]:
        listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
        return tuple(int(number) for number in re.findall(r"sm_(\d+)\b", listed.stdout))

    def compile(self, code: str, names: list[str], filename: str, flags: list[str]) -> tuple[dict[str, str], str]:
        marks = ", ".join(f"(const void *)&offline_marker<&{name}, {number}>" for number, name in enumerate(names))
        uses = ", ".join(f"(const void *)&{name}" for name in names)
        added = f"{self.MARKER}\nextern const void *const offline_uses[] = {{{uses}, {marks}}};\n"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / Path(filename).name
            source.write_text(f'#line 1 "{filename}"\n{code}\n#line 1 "name_expressions"\n{added}')
            done = subprocess.run(
                ["nvcc", "-x", "cu", "-cubin", *flags, "-o", str(source.with_suffix(".cubin")), str(source)],
                capture_output=True,
                text=True,
            )
        log = done.stdout + done.stderr
        if done.returncode:
            raise OfflineError(f"{filename} does not compile:\n{log}")
        mangled = COMPILING.findall(log)
        by_signature = {demangled(symbol): symbol for symbol in mangled}
        lowered = {}
        for signature in by_signature:
            if found := self.MARKED.fullmatch(signature):
                wanted = found[1]
                plain = wanted.split("(")[0]  # of an extern "C" kernel the symbol has no parameters
                matches = [s for text, s in by_signature.items() if text in (wanted, plain)]
                if len(matches) == 1:
                    lowered[names[int(found[2])]] = matches[0]
        if len(lowered) != len(names):
            raise OfflineError(f"{filename}: nvcc's log does not name {set(names) - set(lowered)}:\n{log}")
        return {name: lowered[name] for name in names}, log


@functools.cache
def demangler() -> Callable[..., Any]:
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    return function


def demangled(symbol: str) -> str:
    """Return the C++ name of a symbol, or the symbol where it has none."""
    status = ctypes.c_int()
    pointer = demangler()(symbol.encode(), None, None, ctypes.byref(status))
    if status.value:
        return symbol
    text = ctypes.string_at(pointer).decode()
    free = ctypes.CDLL(None).free
    free.argtypes = (ctypes.c_void_p,)
    free(pointer)
    return text


def nvrtc_library() -> Path | None:
    """Return NVRTC as a wheel installs it, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("**/libnvrtc.so.*")):
            if ".alt." not in path.name:
                return path
    return None


@functools.cache
def compilers() -> tuple[Compiler, ...]:
    """Return every compiler that is here, the one to use first."""
    found: list[Compiler] = []
    library = nvrtc_library()
    if library is not None:
        found.append(Nvrtc(library))
    if shutil.which("nvcc"):
        found.append(Nvcc())
    return tuple(found)


def compiler() -> Compiler | None:
    return compilers()[0] if compilers() else None
