"""``packedbag doctor --warm-cuda``: compiles every CUDA kernel ahead, so that no later call has to."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.progress import track

from packedbag.backends import cuda_kernels
from packedbag.backends.registry import REGISTRY, missing
from packedbag.cli.console import notes
from packedbag.core.errors import BackendError

NAME = "cupy_cuda"


def warm_cuda(say: Callable[[str], None]) -> None:
    """Compile every kernel for every GPU of this machine; CuPy keeps the results on disk.

    Raises:
        BackendError: the CUDA backend cannot run here.
    """
    reason = missing(NAME)
    if reason:
        runs = [name for name in REGISTRY if not missing(name)]
        raise BackendError(NAME, f"cannot run here: {reason}", ", ".join(runs))
    from packedbag.backends.cupy_launch import CuPy

    machine = CuPy()
    instances = list(cuda_kernels.every_instance())
    for index in range(torch.cuda.device_count()):
        start = time.perf_counter()
        name = torch.cuda.get_device_name(index)
        for kernel, expression in track(instances, f"compiling for {name}", console=notes, transient=True):
            machine.kernel(torch.device("cuda", index), kernel, expression)
        say(f"{name}: {len(instances)} kernels, {time.perf_counter() - start:.1f} s")
