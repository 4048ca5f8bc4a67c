"""``packedbag doctor --warm-cuda``: compiles every CUDA kernel ahead, so that no later call has to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from rich.progress import track

from packedbag.backends import cuda_kernels
from packedbag.backends.registry import REGISTRY, missing
from packedbag.cli.console import notes
from packedbag.core.errors import BackendError

NAME = "cupy_cuda"


def warm_cuda(say: Callable[[str], None]) -> None:
    """Compile every kernel for every GPU of this machine, on all cores; the results are kept on disk.

    Raises:
        BackendError: the CUDA backend cannot run here.
    """
    reason = missing(NAME)
    if reason:
        runs = [name for name in REGISTRY if not missing(name)]
        raise BackendError(NAME, f"cannot run here: {reason}", ", ".join(runs))
    from packedbag.backends.cupy_compile import compiled
    from packedbag.backends.cupy_launch import CuPy

    machine = CuPy()
    nvrtc = machine.cupy.cuda.nvrtc
    instances = list(cuda_kernels.every_instance())
    for index in range(torch.cuda.device_count()):
        start = time.perf_counter()
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            work = pool.map(compiled, *zip(*instances, strict=True), repeat(capability), repeat(nvrtc))
            for _ in track(work, f"compiling for {name}", len(instances), console=notes, transient=True):
                pass
        for kernel, expression in instances:  # that the driver takes them
            machine.kernel(torch.device("cuda", index), kernel, expression)
        say(f"{name}: {len(instances)} kernels, {time.perf_counter() - start:.1f} s")
