"""Makes the devices of a process: before anything imports torch."""

from __future__ import annotations

import sys


def install() -> None:
    """Give torch its CUDA devices in the host's memory, and packedbag a CuPy that launches the emulator's kernels."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: it has asked who serves CUDA, and does not ask again")
    from tests.cuda_on_cpu.host_device.build import library

    devices = library()
    from tests.cuda_on_cpu.host_device import cupy_stand_in, torch_cuda

    launches = cupy_stand_in.Launches(devices)
    torch_cuda.install(devices, launches.again)
    cupy_stand_in.install(launches)
