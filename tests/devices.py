"""What tests need to know of the device that serves them: CUDA reports later what a CPU raises at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from packedbag.backends import select


def hosted() -> bool:
    """Return whether CUDA devices are in the host's memory: ``pytest --hosted``. Kernels are slow there."""
    return hasattr(torch.cuda, "_host_device_launches")


def seeded(seed: int) -> torch.Generator:
    """Return a generator of the device that tensors are made on."""
    return torch.Generator(torch.empty(0).device).manual_seed(seed)


def settled(call: Callable[[], Any], *optimizers: Any) -> Any:
    """Return the result of ``call``, or raise what it, or a step of the ``optimizers``, found on its device."""
    result = call()
    for optimizer in optimizers:
        optimizer.check()
    device = torch.empty(0).device
    backend = select(device.type)
    if backend.deferred:
        backend.raise_found(device, wait=True)
    return result
