"""Sharded tables on the CUDA backend, which the emulator runs on the CPU, between ranks that keep NCCL's rules.

See `tests.distributed.device_cases`; `tests.gpu.test_nccl` runs the same on GPUs.
"""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu.toolchain import missing
from tests.distributed.as_nccl import NotOfNcclError, checked
from tests.distributed.places import VARIABLE
from tests.distributed.ranks import assert_all_ok

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the emulator of CUDA: {missing()}")


# Alone, as with one GPU; two nodes of two: columns pass through ranks that are neither the first nor the last.
@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (4, 2)])
def test_ranks_do_on_the_cuda_backend_what_one_process_does_on_the_cpu(world: int, per_node: int) -> None:
    assert assert_all_ok("tests.distributed.device_cases", world, per_node, ((VARIABLE, "emulated"),)) > 15


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1, dtype=torch.int16), "does not know torch.int16"),
        (torch.zeros(1, dtype=torch.uint32), "does not know torch.uint32"),
        (torch.zeros(2, 2).T, "takes contiguous tensors"),
    ],
)
def test_what_nccl_refuses_is_refused(tensor: torch.Tensor, reason: str) -> None:
    with pytest.raises(NotOfNcclError, match=reason):
        checked([tensor])
