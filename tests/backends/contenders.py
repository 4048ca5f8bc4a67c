"""Every backend but the oracle that can run here, on every device and with every instruction set: test parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from packedbag.backends import get, missing, native_cpu
from tests.backends.arrays import Handed
from tests.cuda_on_cpu import machine

#: The names of the backends that `contenders` knows.
NAMES = ("native_cpu", "cupy_cuda", "eager")


def native() -> list[Any]:
    """Return the native backend with each instruction set that can run here."""
    reason = missing("native_cpu")
    if reason:
        return [skipped("native_cpu", f"native_cpu: {reason}")]
    return [pytest.param(partial(native_cpu.NativeCpu, isa), id=f"native_cpu-{isa}") for isa in native_cpu.isas()]


def cuda() -> list[Any]:
    """Return the CUDA backend: its kernels on the CPU, and on a GPU where there is one."""
    reason = machine.missing()
    emulated = (
        skipped("cupy_cuda-emulated", f"the emulator of CUDA: {reason}")
        if reason
        else pytest.param(lambda: Handed(machine.Reporting(machine.emulated())), id="cupy_cuda-emulated")
    )
    if missing("cupy_cuda"):
        return [emulated]
    gpu = pytest.param(lambda: Handed(machine.Reporting(get("cupy_cuda")), "cuda"), id="cupy_cuda")
    return [emulated, gpu]


def skipped(name: str, reason: str) -> Any:
    """Return a parameter that is skipped, with the reason."""
    return pytest.param(lambda: None, id=name, marks=pytest.mark.skip(reason=reason))


def contenders() -> list[Any]:
    """Return functions that make a backend of NumPy arrays."""
    found = [pytest.param(lambda: Handed(get("eager")), id="eager-cpu")]
    # A backend of torch tensors that is forced serves NumPy tables as well.
    found.append(pytest.param(lambda: get("eager"), id="eager-given-numpy"))
    if torch.cuda.is_available():
        found.append(pytest.param(lambda: Handed(get("eager"), "cuda"), id="eager-cuda"))
    return [*found, *native(), *cuda()]
