"""Where ranks hold their tables, and by what they talk; PACKEDBAG_TEST_PLACE names one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from packedbag.adapters.torchrec_requirement import MissingTorchRecError, import_torchrec

VARIABLE = "PACKEDBAG_TEST_PLACE"
#: What TorchRec's exchanges call on a GPU.
FBGEMM = ("fbgemm::permute_2D_sparse_data", "fbgemm::block_bucketize_sparse_features")


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

    def missing(self) -> str | None:
        """Return what this machine lacks for ranks here, or None."""
        if self.device == "cuda":
            if not torch.cuda.is_available():
                return "torch finds no CUDA device"
            if not dist.is_nccl_available():
                return "this torch was built without NCCL"
        try:
            import_torchrec()
        except MissingTorchRecError as error:
            return str(error)
        if self.device == "cuda" and not all(map(_has_cuda_kernel, FBGEMM)):
            return "this FBGEMM has no CUDA kernels: install fbgemm-gpu of torch's CUDA in place of fbgemm-gpu-cpu"
        return None

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


def _has_cuda_kernel(operator: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA"))


def nodes_of(world: int) -> int:
    """Return how many of ``world`` ranks are to stand for a node: two nodes where there are four."""
    return 2 if world == 4 else world


def place() -> Place:
    """Return the place of this process."""
    return PLACES[os.environ.get(VARIABLE, "cpu")]
