"""Where ranks hold their tables, and by what they talk; PACKEDBAG_TEST_PLACE names one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch

VARIABLE = "PACKEDBAG_TEST_PLACE"


@dataclass(frozen=True)
class Place:
    """Where a rank's sharded tables are.

    Attributes:
        device: of its tables; "cuda" is a GPU for each rank.
        group: the backend of `torch.distributed`.
        emulated: whether the emulated CUDA backend serves them.
    """

    device: str
    group: str
    emulated: bool = False

    def device_of(self, rank: int) -> torch.device:
        """Return the device of a rank of this machine."""
        return torch.device("cuda", rank) if self.device == "cuda" else torch.device(self.device)

    def serving(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the tables are used; tables to compare with are used outside."""
        if not self.emulated:
            return contextlib.nullcontext()
        from tests.cuda_on_cpu.machine import serving_the_cpu

        return serving_the_cpu()

    def prepare(self, rank: int) -> None:
        """Make ready what `init_process_group` needs."""
        if self.device == "cuda":
            torch.cuda.set_device(rank)  # what is sent as an object goes through it, too
        elif self.group != "gloo":
            from tests.distributed import as_nccl

            as_nccl.register()


PLACES = {
    "cpu": Place("cpu", "gloo"),
    "emulated": Place("cpu", "as_nccl", emulated=True),
    "cuda": Place("cuda", "nccl"),
}


def place() -> Place:
    """Return the place of this process."""
    return PLACES[os.environ.get(VARIABLE, "cpu")]
