"""The CUDA backend on the emulator: its launch code runs as it is, with CPU tensors where a GPU's would be."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from packedbag.backends import cuda_kernels, registry
from packedbag.backends.cupy_cuda import CupyCuda
from tests.cuda_on_cpu import emulator

missing = emulator.missing


@functools.cache
def compiled(name: str, expression: str) -> Any:
    """Return one kernel, built once in a process."""
    module = emulator.Module(
        cuda_kernels.source(name), name_expressions=(expression,), filename=cuda_kernels.KERNELS[name].file
    )
    return module.get_function(expression)


class EmulatedMachine:
    """Stands for CuPy and a GPU: see `packedbag.backends.cupy_launch.Machine`."""

    def kernel(self, device: torch.device, name: str, expression: str) -> Any:
        """Return the kernel, which runs on the CPU."""
        return compiled(name, expression)

    def stream(self, device: torch.device) -> Any:
        """Return None: a launch is done when it returns."""
        return None

    def activate(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Do nothing: there is one device."""
        return contextlib.nullcontext()

    def address(self, tensor: torch.Tensor) -> np.uint64:
        """Return the address, by which the emulator finds the memory that a kernel may touch."""
        return emulator.remember(tensor)

    def shared_flag(self) -> torch.Tensor:
        """Return plain memory."""
        return torch.zeros(1, dtype=torch.int32)

    def synchronize(self, device: torch.device) -> None:
        """Do nothing."""


def emulated() -> CupyCuda:
    """Return a CUDA backend that runs on the CPU."""
    return CupyCuda(EmulatedMachine())


@contextlib.contextmanager
def serving_the_cpu() -> Iterator[CupyCuda]:
    """Let the CUDA backend serve tensors on the CPU, unless another is forced."""
    backend, chosen = emulated(), registry._select

    def select(device: str, arrays: str | None, forced: str | None) -> Any:
        return backend if arrays is None and not forced else chosen(device, arrays, forced)

    registry._select = select  # type: ignore[assignment]
    try:
        yield backend
    finally:
        registry._select = chosen


class Reporting:
    """A deferred backend whose `bag` returns what it has found, as those of the CPU do; all else is the backend's."""

    def __init__(self, backend: CupyCuda) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def bag(self, *arguments: Any, **named: Any) -> int:
        """Reduce bags; return the first position that ``bounds="raise"`` refuses, or -1."""
        self.backend.bag(*arguments, **named)
        error = self.backend.record(arguments[0].device).take()
        return -1 if error is None else int(error.position)
