"""Gathers the gradients of every rank, in rank order, so that all ranks take the same step."""

from __future__ import annotations

import struct
from typing import Any

import torch
import torch.distributed as dist

from packedbag.core.errors import PackedBagError
from packedbag.ops.sink import Gradients, concatenate

_FIELDS = ("rows", "bags", "grad", "weights", "counts", "columns")
_DTYPES = (torch.int64, torch.int64, torch.float32, torch.float32, torch.float32, torch.int32)


def gather(
    gradients: Gradients | None, received: float, options: dict[str, Any], group: Any, device: torch.device
) -> tuple[Gradients | None, float, int, int]:
    """Exchange one table's gradients among the ranks of ``group``.

    Args:
        gradients: this rank's, or None.
        received: this rank's gradient of the anchor.
        options: the parameter group: its seed and step must agree.

    Returns:
        The gradients of all ranks joined in rank order, the sum of ``received`` over the ranks, the number of
        backward calls on all ranks, and the seed of rank 0. Under DDP every rank's ``received`` is the mean, so
        that sum and calls cancel: bits are trained by the sum of the ranks' gradients, as if one process had
        made all the backward calls.
    """
    tensors = [getattr(gradients, name) if gradients is not None else None for name in _FIELDS]
    sizes = [-1 if t is None else t.shape[0] for t in tensors]
    width = [0 if t is None or t.ndim == 1 else t.shape[1] for t in tensors]
    calls = gradients.calls if gradients is not None else 0
    (bits,) = struct.unpack("<q", struct.pack("<d", received))
    seed = options["seed"] - (1 << 64) if options["seed"] >= 1 << 63 else options["seed"]
    mine = torch.tensor([calls, bits, seed, options["step"], *sizes, *width], dtype=torch.int64, device=device)
    headers = _all_gather(mine, group)
    table = torch.stack(headers).tolist()
    if any(row[3] != table[0][3] for row in table) or (table[0][3] and any(row[2] != table[0][2] for row in table)):
        steps = [f"seed {row[2] % (1 << 64)} at step {row[3]}" for row in table]
        raise PackedBagError(
            f"the ranks' packed optimizers differ: {'; '.join(steps)}. Start or load all ranks from one state."
        )
    gathered = {}
    for i, (name, tensor, dtype) in enumerate(zip(_FIELDS, tensors, _DTYPES, strict=True)):
        lengths = [row[4 + i] for row in table]
        if max(lengths) < 0:
            gathered[name] = [None] * len(table)
            continue
        columns = max(row[4 + len(_FIELDS) + i] for row in table)
        shape = (max(lengths), columns) if columns else (max(lengths),)
        padded = torch.zeros(shape, dtype=dtype, device=device)
        if tensor is not None:
            padded[: len(tensor)] = tensor
        parts = _all_gather(padded, group)
        gathered[name] = [p[:n] if n >= 0 else None for p, n in zip(parts, lengths, strict=True)]
    parts = [
        Gradients(**{name: gathered[name][rank] for name in _FIELDS}, calls=row[0])
        for rank, row in enumerate(table)
        if row[0]
    ]
    total = sum(struct.unpack("<d", struct.pack("<q", row[1]))[0] for row in table)
    return concatenate(parts) if parts else None, total, sum(row[0] for row in table), table[0][2] % (1 << 64)


def _all_gather(tensor: torch.Tensor, group: Any) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor, group=group)
    return parts
