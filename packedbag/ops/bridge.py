"""Hands torch tensors to a backend in the form it takes, and its results back."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from packedbag.backends.protocol import Backend, DeferredBackend
from packedbag.core.bags import bounded_offsets


def to_backend(backend: Backend, tensor: torch.Tensor | None) -> Any:
    """Return ``tensor`` as ``backend`` takes it: itself, or a NumPy array that shares its memory."""
    if tensor is None or backend.arrays == "torch":
        return tensor
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def to_torch(result: Any) -> torch.Tensor:
    """Return a backend's result as a tensor of int32 words or of its own dtype."""
    if isinstance(result, np.ndarray):
        return torch.from_numpy(result.view(np.int32) if result.dtype == np.uint32 else result)
    tensor: torch.Tensor = result
    return tensor


def csr_offsets(
    backend: Backend, offsets: torch.Tensor, num_indices: int, *, include_last_offset: bool
) -> torch.Tensor:
    """Return offsets (B + 1,) int64 on the device of ``offsets``, checked now or, by a deferred backend, there."""
    if backend.deferred:
        deferred = cast(DeferredBackend, backend)
        ends: torch.Tensor = deferred.bag_ends(offsets, num_indices, include_last_offset=include_last_offset)
        return ends
    checked = bounded_offsets(offsets.cpu().numpy(), num_indices, include_last_offset=include_last_offset)
    return torch.from_numpy(np.ascontiguousarray(checked)).to(offsets.device)


def kept_entries(
    backend: Backend,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    *,
    num_embeddings: int,
    padding_idx: int,
    include_last_offset: bool,
    bounds: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows (K,), positions (K,) and offsets (B + 1,) of the entries that are kept: `Backend.keep`."""
    if offsets is not None:
        offsets = csr_offsets(backend, offsets, indices.numel(), include_last_offset=include_last_offset)
    rows, positions, starts = backend.keep(
        to_backend(backend, indices.contiguous()),
        to_backend(backend, offsets),
        num_embeddings=num_embeddings,
        padding_idx=padding_idx,
        bounds=bounds,
    )
    return to_torch(rows), to_torch(positions), to_torch(starts)
