"""Optimizers of bits and floats under DistributedDataParallel: two gloo ranks end where one process does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from packedbag.core.errors import GradientError
from tests.adapters.test_mixed_optimizers import MAKERS, small_model
from tests.adapters.votes import batch

STEPS = 4
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def one_step(model: torch.nn.Module, optimizer: Any, number: int, bags: slice, factor: float = 1.0) -> None:
    indices, labels = batch(number)
    optimizer.zero_grad()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(indices[bags]), labels[bags])
    (loss * factor).backward()
    optimizer.step()


def trained(name: str, wrap: bool, bags: slice) -> dict[str, torch.Tensor]:
    model = small_model()
    used = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if wrap else model
    optimizer = MAKERS[name](used.parameters())
    for number in range(STEPS):
        one_step(used, optimizer, number, bags)
    return {key: value.view(torch.int32) for key, value in model.state_dict().items()}


def refused_everywhere(name: str, rank: int) -> bool:
    """Say whether a loss that is not finite on one rank changes nothing on either."""
    model = small_model()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = MAKERS[name](wrapped.parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        one_step(wrapped, optimizer, 0, slice(None), math.nan if rank else 1.0)
    except GradientError:
        return all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return False


def run_rank(rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        half = slice(128 * rank, 128 * (rank + 1))
        results[rank] = {name: (trained(name, True, half), refused_everywhere(name, rank)) for name in MAKERS}
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.host(emulated=True)  # ranks of gloo, on the CPU, whose processes nobody tells of another device
def test_two_ranks_end_where_one_process_does_and_refuse_together(tmp_path: Path) -> None:
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(run_rank, args=(str(tmp_path / "store"), results), nprocs=2)
        first, second = results[0], results[1]
    for name in MAKERS:
        alone = trained(name, False, slice(None))
        (one, one_refused), (two, two_refused) = first[name], second[name]
        assert one_refused, name
        assert two_refused, name
        for key, value in alone.items():
            assert torch.equal(one[key], two[key]), (name, key)
            if key.endswith("0.weight"):  # sums of two ranks are rounded otherwise: a vote or two may fall out
                differing = (one[key] ^ value).view(torch.uint8).flatten()
                bits = sum(int(((differing >> bit) & 1).sum()) for bit in range(8))
                assert bits <= 0.002 * value.numel() * 32, (name, bits)
            else:
                torch.testing.assert_close(one[key].view(torch.float32), value.view(torch.float32))
