"""Compiles the kernels of ``cuda/`` with CuPy and launches them on torch's current stream.

Memory comes from torch alone: kernels are handed addresses, so that CuPy's pool stays out. A kernel is compiled when
it is first used (0.1 to 0.9 s, and kept on disk), or ahead, by ``packedbag doctor --warm-cuda``. A graph
cannot capture a launch that still has to compile.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from packedbag.backends import cuda_kernels
from packedbag.backends.cupy_compile import compiled
from packedbag.core.errors import MissingExtraError

Tensor = torch.Tensor
Arguments = Sequence[Any]  # tensors, None for null, and NumPy scalars

NULL = np.uint64(0)
WARP = 32
MOST_BLOCKS = 2**31 - 1


class Machine(Protocol):
    """What a launch needs of the machine: CuPy and torch here, an emulator in the tests."""

    def kernel(self, device: torch.device, name: str, expression: str) -> Any:
        """Return the compiled instance: called with grid, block, arguments; ``stream`` by name."""
        ...

    def stream(self, device: torch.device) -> Any:
        """Return torch's current stream there, as the kernel takes it."""
        ...

    def activate(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Make ``device`` the current one of this thread."""
        ...

    def address(self, tensor: Tensor) -> np.uint64:
        """Return where ``tensor`` lies, as a kernel's argument."""
        ...

    def shared_flag(self) -> Tensor:
        """Return an int32 (1,) that is 0, in host memory that kernels can write to."""
        ...

    def synchronize(self, device: torch.device) -> None:
        """Wait until everything that was launched on ``device`` is done."""
        ...


class TorchStream:
    """A stream of torch's as a launch of CuPy's takes one. A stream of CuPy's own would cost more than the launch.

    Args:
        ptr: the handle, by the name under which CuPy looks for it.
    """

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _handle_of_stream(index: int) -> int:
    handle: int = torch.cuda.current_stream(index).cuda_stream
    return handle


class CuPy:
    """CuPy, with torch's streams, devices and memory."""

    def __init__(self) -> None:
        self.cupy = require()
        self._current = torch.cuda.current_device
        # Of an index, its stream's handle: a tenth of the time that torch.cuda.current_stream takes.
        self._stream_of: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _handle_of_stream)

    @functools.cache  # noqa: B019 - one instance lives as long as the process
    def kernel(self, device: torch.device, name: str, expression: str) -> Any:
        """See `Machine.kernel`."""
        with self.activate(device):
            capability = torch.cuda.get_device_capability(device)
            path, symbol = compiled(name, expression, capability, self.cupy.cuda.nvrtc)
            return self.cupy.RawModule(path=str(path)).get_function(symbol).kernel

    def stream(self, device: torch.device) -> Any:
        """See `Machine.stream`. Asked for at every launch: a stream that was kept would not record into a graph."""
        return TorchStream(self._stream_of(device.index))

    def activate(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """See `Machine.activate`."""
        return contextlib.nullcontext() if self._current() == device.index else torch.cuda.device(device)

    def address(self, tensor: Tensor) -> np.uint64:
        """See `Machine.address`."""
        address: np.uint64 = np.uint64(tensor.data_ptr())
        return address

    def shared_flag(self) -> Tensor:
        """See `Machine.shared_flag`. Under unified addressing, pinned memory has one address on host and devices."""
        return torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=True)

    def synchronize(self, device: torch.device) -> None:
        """See `Machine.synchronize`."""
        torch.cuda.synchronize(device)


def require() -> Any:
    """Return the module cupy, or raise `MissingExtraError`."""
    try:
        with warnings.catch_warnings():  # of several CuPys, or of a toolkit that is not needed here
            warnings.simplefilter("ignore")
            import cupy
    except ImportError as error:
        raise MissingExtraError("The cupy_cuda backend", "cupy", extra()) from error
    return cupy


def extra() -> str:
    """Return the extra of packedbag that installs the CuPy which goes with torch's CUDA."""
    return f"cuda{(torch.version.cuda or '13').split('.')[0]}"


class Launcher:
    """Launches kernels by name; converts arguments to what CuPy takes."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def launch(
        self,
        device: torch.device,
        name: str,
        instance: tuple[str | int, ...],
        threads: int,
        arguments: Arguments,
        *,
        block: int = 128,
        rows_of_blocks: int = 1,
    ) -> None:
        """Launch one instance of kernel ``name``.

        Args:
            instance: the template's arguments.
            threads: at least so many, in blocks of ``block``; 0 launches nothing.
            arguments: tensors, None for null, and NumPy scalars of the parameter's exact width.
            rows_of_blocks: the grid's second dimension.
        """
        blocks = -(-threads // block)
        if blocks <= 0:
            return
        if blocks > MOST_BLOCKS:
            raise ValueError(f"{name} needs {blocks} blocks; a launch has {MOST_BLOCKS} at most")
        machine = self.machine
        with machine.activate(device):
            kernel = machine.kernel(device, name, cuda_kernels.expression(name, *instance))
            kernel(
                (blocks, rows_of_blocks),
                (block,),
                tuple([machine.address(x) if isinstance(x, Tensor) else NULL if x is None else x for x in arguments]),
                stream=machine.stream(device),
            )


def scalars(kind: type[np.generic], *values: float) -> list[np.generic]:
    """Return numbers as a kernel's parameters of one type."""
    return [kind(value) for value in values]
