"""Run CUDA kernels on the CPU, behind the part of `cupy.RawModule` that the package uses.

    module = Module(source, name_expressions=["count<int>"])
    module.get_function("count<int>")((blocks,), (threads,), (array, np.int32(n)), shared_mem=0)

What is checked, and what is not, is in README.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda_on_cpu import toolchain
from tests.cuda_on_cpu.addresses import Addresses
from tests.cuda_on_cpu.dialect import DialectError, rewrite

SIZE, FLOATING, POINTER, READ_ONLY = 255, 256, 1024, 2048  # kernel_entry.h
MOST_ARGUMENTS = 64
STATIC_SHARED = 48 << 10
#: Bytes of shared memory a block may have, with max_dynamic_shared_size_bytes set.
MOST_SHARED = {750: 64 << 10, 800: 163 << 10, 860: 99 << 10, 890: 99 << 10, 900: 227 << 10, 1000: 227 << 10,
               1200: 99 << 10}  # fmt: skip
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}
PLAIN_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)')
LAUNCH = struct.Struct("<6I3Q2Id")
missing = toolchain.missing


class EmulatorError(RuntimeError):
    """A kernel or a launch that a GPU would refuse, or that computes something undefined."""


@dataclass
class Settings:
    """How the next launches run; the context managers below set it."""

    schedule: int = 0
    seed: int = 0
    exact_ends: bool = False
    cpu_seconds: float = 60.0


settings = Settings()
addresses = Addresses()


@contextlib.contextmanager
def changed(**values: Any) -> Iterator[None]:
    before = {name: getattr(settings, name) for name in values}
    for name, value in values.items():
        setattr(settings, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def schedule(name: str, seed: int = 0) -> contextlib.AbstractContextManager[None]:
    """Run blocks and threads "forward" (the default), in "reverse", or in a "random" order.

    In a random order a thread may also be set aside at each atomic and fence.
    """
    return changed(schedule=SCHEDULES[name], seed=seed)


def exact_ends() -> contextlib.AbstractContextManager[None]:
    """End every buffer exactly at the unmapped page, whatever alignment its start then has.

    For kernels without vector loads: otherwise an over-read of less than 16 bytes can go unseen.
    """
    return changed(exact_ends=True)


def cpu_limit(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Fail a launch that takes more CPU time than this; 60 s where nothing is said."""
    return changed(cpu_seconds=seconds)


def remember(value: Any) -> np.uint64:
    """Return the address of a NumPy array or a CPU tensor for use as an argument, 0 if it has no bytes.

    The object is kept until the end of the next launch, and known as long as its memory lives.
    """
    try:
        address: np.uint64 = np.uint64(addresses.remember(value))
    except TypeError as error:
        raise EmulatorError(str(error)) from None
    return address


def forget(value: Any) -> None:
    """Make the address of an array or a tensor unknown again."""
    addresses.forget(value)


def sanitizer(name: str | None = None) -> str:
    """Return the sanitizer that kernels are built with: the argument, PACKEDBAG_EMULATOR_SANITIZE, or UBSan."""
    chosen = name if name is not None else os.environ.get("PACKEDBAG_EMULATOR_SANITIZE") or "ubsan"
    if chosen not in toolchain.SANITIZERS:
        raise EmulatorError(f"sanitizer {chosen!r}; there are {', '.join(toolchain.SANITIZERS)}")
    return chosen


class Module:
    """A CUDA source, compiled for the CPU.

    Args:
        code: the source; lines keep their numbers.
        options: of those for nvcc, -D, -U and -I are heeded; -I folders are where `#include "..."` is looked up.
        name_expressions: the kernels to build, as `kernel<int, 4>`; without them, every `extern "C"` kernel.
        sanitize: "none", "ubsan", "asan" or "tsan"; None leaves it to PACKEDBAG_EMULATOR_SANITIZE.
        arch: what `__CUDA_ARCH__` is.
        filename: what messages call the source.
    """

    def __init__(
        self,
        code: str,
        *,
        options: Sequence[str] = (),
        name_expressions: Sequence[str] = (),
        sanitize: str | None = None,
        arch: int = 900,
        filename: str = "kernels.cu",
    ) -> None:
        self.arch = arch
        self.sanitize = sanitizer(sanitize)
        names = list(name_expressions) or PLAIN_KERNEL.findall(code)
        if not names:
            raise EmulatorError(f'{filename}: no name_expressions, and no extern "C" kernel')
        self.numbers = {name: number for number, name in enumerate(names)}
        folders = [Path(option[2:]) for option in options if option.startswith("-I")]
        defines = [option for option in options if option.startswith(("-D", "-U"))]
        try:
            text = f'#line 1 "{filename}"\n{rewrite(code, filename, folders)}\n#line 1 "name_expressions"\n'
            for number, name in enumerate(names):
                text += (
                    f'extern "C" void emu_enter_{number}(void **a) {{ emu_enter(&{name}, a); }} '
                    f'extern "C" int emu_describe_{number}(int *out) {{ return emu_describe(&{name}, out); }}\n'
                )
            self.path = toolchain.kernel_library(
                text, Path(filename).name, sanitize=self.sanitize, arch=arch, options=defines
            )
        except (DialectError, toolchain.BuildError) as error:
            raise EmulatorError(f"{filename} does not compile:\n{error}") from None
        self.library = toolchain.loaded(self.path)
        scheduler = toolchain.loaded(toolchain.runtime(self.sanitize))
        self.launch = scheduler.emu_launch
        self.launch.restype = ctypes.c_char_p
        self.launch.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        self.fault_offset = scheduler.emu_fault_offset
        self.fault_offset.restype = ctypes.c_size_t

    def get_function(self, name: str) -> Function:
        if name not in self.numbers:
            raise EmulatorError(f"{name!r} is not among the name_expressions: {', '.join(self.numbers)}")
        number = self.numbers[name]
        described = (ctypes.c_int * (MOST_ARGUMENTS + 1))()
        count = self.library[f"emu_describe_{number}"](described)
        entry = ctypes.cast(self.library[f"emu_enter_{number}"], ctypes.c_void_p).value
        assert entry is not None
        return Function(self, name, entry, list(described[:count]))


@dataclass(slots=True)
class Argument:
    """One argument as launch.cpp reads it."""

    is_pointer: bool = False
    value: int = 0
    nbytes: int = 0
    writable: bool = False
    same_as: int = 0


class Function:
    """A kernel of a module; call it as CuPy's: `function(grid, block, args, shared_mem=0)`."""

    def __init__(self, module: Module, name: str, entry: int, parameters: list[int]) -> None:
        self.module = module
        self.name = name
        self.entry = entry
        self.parameters = parameters
        self.max_dynamic_shared_size_bytes = STATIC_SHARED

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
        stream: object = None,
    ) -> None:
        try:
            message = self.launch(tuple(grid), tuple(block), args, int(shared_mem))
        finally:
            addresses.launched()
        if message:
            offset = self.module.fault_offset()
            lines = toolchain.source_lines(self.module.path, offset) if offset else ""
            raise EmulatorError(f"{self.name}: {message}{' at ' if lines else ''}{lines}")

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int) -> str:
        sizes = self.sizes(grid, block, shared_mem)
        if len(args) != len(self.parameters):
            return f"{len(args)} arguments for {len(self.parameters)} parameters"
        arguments = []
        for number, (value, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            convert = self.pointer if parameter & POINTER else self.number
            arguments.append(convert(number, value, parameter))
        self.share(arguments)
        limit = MOST_SHARED.get(self.module.arch, 227 << 10)
        if self.max_dynamic_shared_size_bytes <= STATIC_SHARED:
            limit = STATIC_SHARED
        packed = [LAUNCH.pack(*sizes, shared_mem, limit, len(arguments), settings.schedule, settings.seed & 0xFFFFFFFF,
                              settings.cpu_seconds)]  # fmt: skip
        for number, a in enumerate(arguments):
            phase = (-a.nbytes if settings.exact_ends else a.value) % 16
            same_as = a.same_as if a.is_pointer else number
            packed.append(struct.pack("<6Q", a.is_pointer, a.value, a.nbytes, phase, a.writable, same_as))
        return str(self.module.launch(self.entry, b"".join(packed)).decode())

    def sizes(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> list[int]:
        """Return the six sizes; CuPy turns a 0 into a 1, which hides a mistake, so here it is an error."""
        sizes = [int(size) for sizes in (grid, block) for size in (*sizes, 1, 1)[:3]]
        most = (2**31 - 1, 65535, 65535, 1024, 1024, 64)
        threads = sizes[3] * sizes[4] * sizes[5]
        if any(not 1 <= size <= bound for size, bound in zip(sizes, most, strict=True)) or threads > 1024:
            raise EmulatorError(f"{self.name}: no GPU has a grid of {grid} blocks of {block} threads")
        if not 0 <= shared_mem <= self.max_dynamic_shared_size_bytes:
            raise EmulatorError(
                f"{self.name}: shared_mem is {shared_mem}; max_dynamic_shared_size_bytes is "
                f"{self.max_dynamic_shared_size_bytes}"
            )
        return sizes

    def wrong(self, number: int, seen: str, wanted: str) -> EmulatorError:
        return EmulatorError(f"{self.name}: argument {number} is {seen}; the parameter is {wanted}")

    def number(self, number: int, value: Any, parameter: int) -> Argument:
        size, floating = parameter & SIZE, bool(parameter & FLOATING)
        wanted = f"a {size}-byte {'float' if floating else 'integer'}, a NumPy scalar of that width"
        if not isinstance(value, np.generic):
            raise self.wrong(number, f"{type(value).__name__} {value!r}", wanted)
        if value.dtype.itemsize != size or (value.dtype.kind == "f") != floating or value.dtype.kind not in "iufb":
            raise self.wrong(number, f"numpy.{value.dtype.name}", wanted)
        return Argument(value=int.from_bytes(value.tobytes(), "little"))

    def pointer(self, number: int, value: Any, parameter: int) -> Argument:
        size, floating, writable = parameter & SIZE, bool(parameter & FLOATING), not parameter & READ_ONLY
        wanted = f"a pointer to {size}-byte {'floats' if floating else 'integers'}" if size else "a void pointer"
        if value is None:
            return Argument(is_pointer=True)
        if isinstance(value, np.uint64):
            address = int(value)
            nbytes = addresses.bytes_from(address) if address else 0
            if nbytes is None:
                raise EmulatorError(
                    f"{self.name}: argument {number}: address {address:#x} belongs to no remembered tensor"
                )
            return Argument(True, address, nbytes, writable)
        if isinstance(value, np.ndarray):
            kind, itemsize, contiguous = value.dtype.kind, value.itemsize, value.flags.c_contiguous
            address, nbytes = value.ctypes.data, value.nbytes
            if writable and not value.flags.writeable:
                raise self.wrong(number, "a read-only array", f"{wanted}, not const")
        elif hasattr(value, "data_ptr") and value.device.type == "cpu":
            kind, itemsize, contiguous = (
                "f" if value.is_floating_point() else "i",
                value.element_size(),
                value.is_contiguous(),
            )
            address, nbytes = value.data_ptr(), value.numel() * value.element_size()
        else:
            raise self.wrong(number, type(value).__name__, f"{wanted}: an array, a CPU tensor, an address or None")
        if not contiguous:
            raise self.wrong(number, "not contiguous", wanted)
        half = kind == "f" and itemsize == 2  # a kernel reads float16 and bfloat16 as 2-byte integers
        if size and (size % itemsize or ((kind == "f") != floating and not half)):
            raise self.wrong(number, f"{value.dtype}", wanted)
        return Argument(True, address if nbytes else 0, nbytes, writable)

    def share(self, arguments: list[Argument]) -> None:
        """Let arguments that are one range share one copy; others must not overlap, unless both are const."""
        first_at: dict[int, int] = {}
        separate = []
        for number, a in enumerate(arguments):
            a.same_as = number
            if not a.nbytes:
                continue
            first = first_at.setdefault(a.value, number)
            if first != number and arguments[first].nbytes == a.nbytes:
                a.same_as = first
                arguments[first].writable |= a.writable
            else:
                separate.append(number)
        for i, j in itertools.combinations(separate, 2):
            a, b = arguments[i], arguments[j]
            if (a.writable or b.writable) and a.value < b.value + b.nbytes and b.value < a.value + a.nbytes:
                raise EmulatorError(
                    f"{self.name}: arguments {i} and {j} overlap, are not the same range of memory, and not both const"
                )
