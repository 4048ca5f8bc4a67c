"""The device that a model is trained on: which one an option names, and how arrays get there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch

from packedbag.core.errors import ArgumentError

#: What tells CUDA which GPUs a process may see, and in which order.
VISIBLE = "CUDA_VISIBLE_DEVICES"


def find_device(name: str) -> torch.device:
    """Return the device that ``--device`` names: "cpu", "cuda", or "cuda:1" for the second GPU.

    Raises:
        ArgumentError: there is no such device, or torch cannot use it.
    """
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]*))?", name):
        raise ArgumentError("--device", repr(name), "cpu, cuda, or cuda:1 for the second GPU")
    if name == "cpu":
        return torch.device("cpu")
    doctor = "`packedbag doctor` says what this machine has."
    if not torch.cuda.is_available():
        raise ArgumentError("--device", repr(name), "cpu: torch finds no GPU here", doctor)
    number, count = int(name.partition(":")[2] or torch.cuda.current_device()), torch.cuda.device_count()
    if number >= count:
        allowed = "cuda or cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ArgumentError("--device", repr(name), f"cpu, or {allowed}: torch finds {count} here", doctor)
    device = torch.device("cuda", number)
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # one that is broken, full, or that another process keeps to itself
        reason = str(error).splitlines()[0]
        raise ArgumentError("--device", repr(name), f"a GPU that torch can use ({reason})", doctor) from None
    return device


def sent(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return ``array`` as a tensor on ``device``; on a CPU it shares the memory.

    A GPU fetches it from pinned memory when it gets there: a copy from elsewhere would wait for all steps before.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def seen_alone(device: torch.device) -> Iterator[str]:
    """Let child processes see one GPU alone; give the name that ``device`` has there, "cpu" or "cuda"."""
    if device.type == "cpu":
        yield "cpu"
        return
    before = os.environ.get(VISIBLE)
    number = device.index or 0
    os.environ[VISIBLE] = before.split(",")[number] if before else str(number)
    try:
        yield "cuda"
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
