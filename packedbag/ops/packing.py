"""`packedbag.pack` and `packedbag.unpack`, for NumPy arrays and for torch tensors on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from packedbag.backends.protocol import DeferredBackend
from packedbag.backends.registry import select
from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import BITS_PER_WORD, check_embedding_dim, pack_array, unpack_array, words_per_row

if TYPE_CHECKING:
    import torch


def pack(x: Any) -> Any:
    """Pack bools, or the signs of floats, 32 to a word.

    Args:
        x: (..., D) NumPy array or torch tensor, bool or floating point; a float >= 0 (-0.0 too) is +1.

    Returns:
        (..., W) uint32 of the same kind and on the same device, W = ceil(D / 32), tail bits 0.

    Raises:
        ArgumentError: ``x`` holds a NaN.
        DtypeError: ``x`` is neither bool nor floating point.

    >>> pack(np.array([[1.0, -1.0, 0.5]]))
    array([[5]], dtype=uint32)
    """
    if _is_tensor(x):
        return _pack_tensor(x)
    return pack_array(np.asarray(x))


def unpack(words: Any, embedding_dim: int) -> Any:
    """Unpack words into bools.

    Args:
        words: (..., W) uint32, or int32 holding the same bytes; NumPy array or torch tensor.
        embedding_dim: D; W must be ceil(D / 32).

    Returns:
        (..., D) bool of the same kind and on the same device: True is +1.

    >>> unpack(np.array([[5]], np.uint32), 3)
    array([[ True, False,  True]])
    """
    if _is_tensor(words):
        return _unpack_tensor(words, embedding_dim)
    return unpack_array(np.asarray(words), embedding_dim)


def _is_tensor(x: object) -> bool:
    """Say whether ``x`` is a torch tensor, without importing torch for a NumPy user."""
    return type(x).__module__.partition(".")[0] == "torch" or hasattr(x, "data_ptr")


def _pack_tensor(x: torch.Tensor) -> torch.Tensor:
    import torch

    if x.ndim == 0 or x.shape[-1] < 1:
        raise ShapeError("x", tuple(x.shape), "(..., D) with D >= 1")
    if x.is_floating_point():
        if bool(torch.isnan(x).any()):
            raise ArgumentError("x", "NaN somewhere", "free of NaN", "A NaN has no sign to keep.")
    elif x.dtype != torch.bool:
        raise DtypeError("x", x.dtype, "bool or floating point", "Pass x > 0 or x.bool() to pack integers.")
    x = x.detach()
    if x.device.type == "cpu":
        return torch.from_numpy(pack_array((x if x.dtype == torch.bool else x >= 0).numpy()))
    backend = select(x.device.type)
    if backend.deferred:
        words: torch.Tensor = cast(DeferredBackend, backend).pack(x)
        return words.view(torch.uint32)
    width = words_per_row(x.shape[-1])
    bits = x if x.dtype == torch.bool else x >= 0
    padded = torch.nn.functional.pad(bits, (0, width * BITS_PER_WORD - x.shape[-1]))
    spread = padded.reshape(*x.shape[:-1], width, BITS_PER_WORD).to(torch.int64)
    packed = (spread << torch.arange(BITS_PER_WORD, device=x.device)).sum(-1)
    return packed.to(torch.int32).view(torch.uint32)


def _unpack_tensor(words: torch.Tensor, embedding_dim: int) -> torch.Tensor:
    import torch

    dim = check_embedding_dim(embedding_dim)
    if words.dtype not in (torch.uint32, torch.int32):
        raise DtypeError("words", words.dtype, "uint32 (or int32, the same bytes)")
    if words.ndim == 0 or words.shape[-1] != words_per_row(dim):
        raise ShapeError("words", tuple(words.shape), f"(..., {words_per_row(dim)}) for embedding_dim={dim}")
    words = words.detach()
    if words.device.type == "cpu":
        return torch.from_numpy(unpack_array(words.contiguous().numpy(), dim))
    backend = select(words.device.type)
    if backend.deferred:
        unpacked: torch.Tensor = cast(DeferredBackend, backend).unpack(words.view(torch.int32), dim)
        return unpacked
    shifts = torch.arange(BITS_PER_WORD, device=words.device, dtype=torch.int32)
    bits = (words.contiguous().view(torch.int32).unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :dim].to(torch.bool)
