"""The part of CuPy that packedbag uses, with the emulator's kernels; the rest of the launch code is what a GPU runs."""

from __future__ import annotations

import ctypes
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.cuda_on_cpu import addresses, emulator, machine


class Launches:
    """Runs kernels, and keeps those that a graph records."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.recorded: list[tuple[Any, tuple[Any, ...], list[Any]]] = []

    def run(self, kernel: Any, arguments: tuple[Any, ...], tensors: list[Any]) -> None:
        """Launch a kernel; ``tensors`` are kept if a graph is to do it again.

        Addresses of which the emulator was told nothing reach to the end of torch's memory there.
        """
        for value in arguments[2]:
            if isinstance(value, np.uint64) and value and emulator.addresses.bytes_from(int(value)) is None:
                length = self.library.host_device_bytes_from(ctypes.c_void_p(int(value)))
                tensors.append(np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(int(value))))
                emulator.remember(tensors[-1])
        if self.library.host_device_capturing():
            self.recorded.append((kernel, arguments, tensors))
            self.library.host_device_launched(len(self.recorded) - 1)
        kernel(*arguments)

    def again(self, number: int) -> None:
        """Launch what was recorded."""
        kernel, arguments, tensors = self.recorded[number]
        for tensor in tensors:
            emulator.remember(tensor)
        kernel(*arguments)


def module(launches: Launches) -> ModuleType:
    """Return what stands for the module ``cupy``."""

    def launcher(kernel: Any) -> Any:
        def launch(grid: Any, block: Any, arguments: tuple[Any, ...], shared_mem: int = 0, *, stream: Any) -> None:
            assert stream.ptr == torch.cuda.current_stream().cuda_stream
            tensors, HostedCuPy.named[:] = list(HostedCuPy.named), []
            launches.run(kernel, (grid, block, arguments, shared_mem), tensors)

        return SimpleNamespace(kernel=launch)

    def loaded(path: str = "", **source: Any) -> Any:
        if launches.library.host_device_capturing():
            raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: a module is loaded while a graph is captured")
        if path:
            name, expression = Path(path).name.split(" ", 1)
            return SimpleNamespace(get_function=lambda symbol: launcher(machine.compiled(name, expression)))
        compiled_here = emulator.Module(**source)
        return SimpleNamespace(get_function=lambda name: launcher(compiled_here.get_function(name)))

    cupy: Any = ModuleType("cupy")
    cupy.__version__, cupy.__spec__ = "stand-in", ModuleSpec("cupy", None)
    cupy.RawModule = loaded
    cupy.get_default_memory_pool = lambda: SimpleNamespace(total_bytes=lambda: 0)
    cupy.cuda = SimpleNamespace(
        nvrtc=SimpleNamespace(getVersion=lambda: (0, 0), getSupportedArchs=lambda: (90,)),
    )
    return cupy


def compiled(name: str, expression: str, capability: tuple[int, int], nvrtc: Any) -> tuple[Path, str]:
    """Stand for `packedbag.backends.cupy_compile.compiled`: the path names the kernel."""
    return Path(f"{name} {expression}"), expression


def install(launches: Launches) -> None:
    """Let packedbag find CuPy, and let the emulator know the memory of devices."""
    import sys

    from packedbag.backends import cupy_compile, cupy_cuda, cupy_launch

    addresses.DEVICES.add("cuda")
    sys.modules["cupy"] = module(launches)
    cupy_launch.compiled = cupy_compile.compiled = compiled
    HostedCuPy.library = launches.library
    cupy_cuda.CuPy = HostedCuPy  # type: ignore[misc]


def _launch_code() -> Any:
    from packedbag.backends.cupy_launch import CuPy

    return CuPy


class HostedCuPy(_launch_code()):  # type: ignore[misc]
    """packedbag's own use of CuPy and torch, which tells the emulator, too, what memory a kernel may touch."""

    named: list[torch.Tensor] = []  # noqa: RUF012 - one launch at a time
    library: ctypes.CDLL
    flags: dict[int, torch.Tensor] = {}  # noqa: RUF012 - of a flag's address: what kernels set in its place
    kept: list[torch.Tensor] = []  # noqa: RUF012 - the library writes to them as long as the process lives

    def shared_flag(self) -> torch.Tensor:
        """Return a flag that the host sees set as late as may be: when it waits for the device."""
        flag, hidden = super().shared_flag(), super().shared_flag()
        self.library.host_device_flag(ctypes.c_void_p(hidden.data_ptr()), ctypes.c_void_p(flag.data_ptr()))
        self.flags[flag.data_ptr()] = hidden
        self.kept.append(flag)
        return flag

    def address(self, tensor: torch.Tensor) -> np.uint64:
        """Return the address, if a kernel on the current device may have it."""
        tensor = self.flags.get(tensor.data_ptr(), tensor)
        address: np.uint64 = super().address(tensor)
        here = torch.device("cuda", torch.cuda.current_device())
        reachable = tensor.device == here or (tensor.device.type == "cpu" and tensor.is_pinned())
        assert reachable, f"a kernel on {here} was handed memory on {tensor.device}"
        self.named.append(tensor)
        emulator.remember(tensor)
        return address
