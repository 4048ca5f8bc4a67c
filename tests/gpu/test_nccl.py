"""Sharded tables on GPUs, which talk through NCCL, have the bits of one process on the CPU.

The checks are those of `tests.distributed.device_cases`; `tests.distributed.test_emulated` runs them without a GPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.distributed.places import PLACES, VARIABLE, nodes_of
from tests.distributed.ranks import assert_all_ok

MISSING = PLACES["cuda"].missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"sharded tables on GPUs: {MISSING}")


def test_ranks_do_with_nccl_what_one_process_does_on_the_cpu() -> None:
    world = min(torch.cuda.device_count(), 4)
    assert assert_all_ok("tests.distributed.device_cases", world, nodes_of(world), ((VARIABLE, "cuda"),)) > 15
