"""Gathers the gradients of every rank, in rank order, so that all ranks take the same step."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from packedbag.core.errors import RankMismatchError
from packedbag.ops.sink import Gradients, concatenate

#: The tensors of `Gradients` and their dtypes, which all ranks must know to receive them.
FIELDS = {
    "rows": torch.int64,
    "bags": torch.int64,
    "grad": torch.float32,
    "weights": torch.float32,
    "counts": torch.float32,
    "columns": torch.int32,
}
ABSENT = -1


@dataclass
class Gathered:
    """One table's gradients on all ranks.

    Attributes:
        gradients: joined in rank order, or None where no rank has any.
        received: the sum of the anchor's gradients over the ranks. Under DDP each is the mean already, so that
            ``received / calls`` is 1: bits are trained by the sum of the ranks' gradients, as if one process
            had made all the backward calls.
        calls: backward calls on all ranks.
        seed: rank 0's.
    """

    gradients: Gradients | None
    received: float
    calls: int
    seed: int


def gather(
    gradients: Gradients | None,
    received: float,
    *,
    seed: int,
    step: int,
    checksum: int,
    group: Any,
    device: torch.device,
) -> Gathered:
    """Exchange one table's gradients among the ranks of ``group``; all of them must call.

    Args:
        gradients: this rank's, or None.
        received: the gradient of this rank's anchor.
        seed, step: of the optimizer.
        checksum: of the table's words, `checksum_of`, or 0 not to compare them.
        group: the process group.
        device: where tensors are exchanged.

    Raises:
        RankMismatchError: the ranks are at different steps, have different seeds after the first one, or hold
            different words.
    """
    tensors = {name: getattr(gradients, name, None) for name in FIELDS}
    shapes = [(ABSENT, 0) if t is None else (t.shape[0], t.shape[1] if t.ndim == 2 else 0) for t in tensors.values()]
    calls = gradients.calls if gradients is not None else 0
    header = torch.tensor(
        [calls, reinterpret("<d", received, "<q"), reinterpret("<Q", seed, "<q"), step, checksum, *sum(shapes, ())],
        dtype=torch.int64,
        device=device,
    )
    ranks = [part.tolist() for part in all_gather(header, group)]
    check_agreement([(reinterpret("<q", rank[2], "<Q"), rank[3]) for rank in ranks], {rank[4] for rank in ranks})
    gathered: dict[str, list[Any]] = {}
    for i, (name, dtype) in enumerate(FIELDS.items()):
        lengths, widths = [rank[5 + 2 * i] for rank in ranks], [rank[6 + 2 * i] for rank in ranks]
        gathered[name] = _gather_ragged(tensors[name], lengths, max(widths), dtype, group, device)
    parts = [
        Gradients(**{name: values[number] for name, values in gathered.items()}, calls=rank[0])
        for number, rank in enumerate(ranks)
        if rank[0]
    ]
    return Gathered(
        gradients=concatenate(parts) if parts else None,
        received=sum(reinterpret("<q", rank[1], "<d") for rank in ranks),
        calls=sum(rank[0] for rank in ranks),
        seed=reinterpret("<q", ranks[0][2], "<Q"),
    )


def reinterpret(source: str, value: Any, target: str) -> Any:
    """Return the 8 bytes of ``value`` as another type: a header travels as int64."""
    return struct.unpack(target, struct.pack(source, value))[0]


def checksum_of(words: torch.Tensor) -> int:
    """Return a number that two tables with different words share only by chance."""
    return int(words.sum(dtype=torch.int64))


def check_agreement(ranks: list[tuple[int, int]], checksums: set[int]) -> None:
    """Raise `RankMismatchError` unless the ranks' seeds and steps, and checksums of their words, agree."""
    (seed, step), *others = ranks
    # Before the first step the ranks' seeds may differ, as each drew its own: rank 0's is taken.
    if any(other[1] != step or (step and other[0] != seed) for other in others):
        seen = "; ".join(f"seed {seed} at step {step}" for seed, step in ranks)
        raise RankMismatchError("packed optimizers", seen)
    if len(checksums) > 1:
        raise RankMismatchError("packed tables", "their bits are not the same")


def _gather_ragged(
    mine: torch.Tensor | None, lengths: list[int], width: int, dtype: torch.dtype, group: Any, device: torch.device
) -> list[Any]:
    """Gather tensors (n,) or (n, width) whose n differs between ranks; None where a rank has none."""
    longest = max(lengths)
    if longest == ABSENT:
        return [None] * len(lengths)
    padded = torch.zeros((longest, width) if width else (longest,), dtype=dtype, device=device)
    if mine is not None:
        padded[: len(mine)] = mine
    parts = all_gather(padded, group)
    return [None if n == ABSENT else part[:n] for part, n in zip(parts, lengths, strict=True)]


def all_gather(tensor: torch.Tensor, group: Any) -> list[torch.Tensor]:
    """Return ``tensor`` of every rank, in rank order."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor, group=group)
    return parts
