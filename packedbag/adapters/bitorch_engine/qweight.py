"""``qweight``: bits packed 8 to a uint8, as bitorch-engine's lookup layer keeps them; and how floats become bits."""

from __future__ import annotations

import math

import torch

from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import view_words, words_per_row
from packedbag.nn.convert import CHUNK_WEIGHTS, clear_tail
from packedbag.ops.memory import empty_table
from packedbag.ops.packing import pack


def bytes_per_row(embedding_dim: int) -> int:
    """Return how many uint8 hold a row."""
    return -(-embedding_dim // 8)


def qweight_view(words: torch.Tensor, embedding_dim: int) -> torch.Tensor:
    """Return words (V, W) as uint8 (V, ceil(D / 8)): column j is bit j % 8 of byte j // 8; shares their memory."""
    return words.view(torch.uint8)[:, : bytes_per_row(embedding_dim)]


def words_of_qweight(qweight: torch.Tensor, num_embeddings: int, embedding_dim: int) -> torch.Tensor:
    """Return ``qweight``, uint8 (V, ceil(D / 8)), as words (V, W) uint32, with tail bits cleared."""
    if qweight.dtype != torch.uint8:
        raise DtypeError("qweight", qweight.dtype, "uint8, 8 bits in each")
    expected = (num_embeddings, bytes_per_row(embedding_dim))
    if tuple(qweight.shape) != expected:
        raise ShapeError("qweight", tuple(qweight.shape), f"{expected} for embedding_dim={embedding_dim}")
    words = empty_table((num_embeddings, words_per_row(embedding_dim)), qweight.device).zero_()
    qweight_view(words, embedding_dim).copy_(qweight)
    clear_tail(words, embedding_dim)
    return view_words(words, "uint32")  # type: ignore[no-any-return]


def binarize_(words: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor) -> None:
    """Write the signs of floats into ``words``, and the mean magnitude of each row into ``scale``.

    Args:
        words: (V, W) int32.
        scale: (V,) float32.
        weight: (V, D) floating point, from which the mean of all of it is subtracted first.

    Source:
        ``prepare_params`` of bitorch-engine's ``BinaryEmbeddingCuda``.
    """
    dim = weight.shape[1]
    rows = max(1, CHUNK_WEIGHTS // dim)
    parts = weight.split(rows)
    mean = sum(float(part.sum(dtype=torch.float64)) for part in parts) / max(1, weight.numel())
    if not math.isfinite(mean):
        what = "A NaN has no sign to keep, and no mean lies beside infinity; nothing was written."
        raise ArgumentError("weight", "NaN or infinite somewhere", "finite", what)
    start = 0
    for part in parts:
        centred = part.detach().to(torch.float32) - mean
        words[start : start + len(part)] = view_words(pack(centred), "int32")
        scale[start : start + len(part)] = centred.abs().mean(1)
        start += len(part)
