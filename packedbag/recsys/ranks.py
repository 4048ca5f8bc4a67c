"""The processes of a run: how they find each other, and which rows of a batch are whose."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from packedbag.core.errors import ArgumentError
from packedbag.recsys.rows import Rows

SHARDINGS = ("table", "row", "column", "auto")
#: What torchrun tells each process; RANK is only there where it does.
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_sharding(sharding: str) -> None:
    """Raise `ArgumentError` unless ``sharding`` is known and torchrun has started this process."""
    if sharding not in SHARDINGS:
        raise ArgumentError("--sharding", repr(sharding), ", ".join(SHARDINGS))
    if any(name not in os.environ for name in TOLD):
        command = "torchrun --nproc-per-node=2 -m packedbag train ..."
        raise ArgumentError("--sharding", f"{sharding} in a single process", "run by torchrun", f"Run: {command}")


def join(timeout: int) -> None:
    """Meet the other processes; gloo, between CPUs."""
    patience = timedelta(seconds=timeout)
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=patience)))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # torchrun's store lives on through a restart, with the addresses of processes that are gone: a rank that starts
        # faster than another would take its old one. On several nodes counts may differ; see docs/distributed.md.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)


def is_lost(error: BaseException) -> bool:
    """Return whether ``error`` is how a rank learns that another one is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset", "Timed out waiting", "gloo"))


def was_restarted() -> bool:
    """Return whether torchrun has started these processes again after a failure (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def share(batch: Rows) -> Rows:
    """Return this rank's rows of a training batch. All ranks have as many: what is left over is not trained on."""
    each = len(batch) // dist.get_world_size()
    first = each * dist.get_rank()
    return batch.take(np.arange(first, first + each))


def padded_share(batch: Rows) -> Rows:
    """Return this rank's rows of a batch that is scored; the last row stands in where rows are missing."""
    each = -(-len(batch) // dist.get_world_size())
    first = each * dist.get_rank()
    return batch.take(np.minimum(np.arange(first, first + each), len(batch) - 1))


def all_of(mine: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first ``count`` numbers of all ranks' (n,), in rank order."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)[:count]


def agree(wish: bool) -> bool:
    """Return whether any rank wishes it."""
    flag = torch.tensor([wish], dtype=torch.int32)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def from_first(thing: Any) -> Any:
    """Return rank 0's ``thing``: numbers, strings, and lists and dicts of them."""
    held = [thing]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gathered(thing: Any) -> list[Any]:
    """Return ``thing`` of every rank, in rank order."""
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, thing)
    return held


def added(numbers: list[list[int]]) -> list[list[int]]:
    """Return the sums over all ranks of equally many numbers."""
    total = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(total)
    found: list[list[int]] = total.tolist()
    return found
