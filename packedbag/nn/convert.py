"""Turns what other checkpoints hold into packed words."""

from __future__ import annotations

import torch

from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.core.layout import tail_mask, view_words, words_per_row
from packedbag.ops.packing import pack

#: Rows are converted in pieces of about this many weights, so that no temporary is as large as the table.
CHUNK_WEIGHTS = 1 << 24


def write_words(words: torch.Tensor, source: torch.Tensor, embedding_dim: int, name: str = "weight") -> None:
    """Write ``source`` into ``words`` (V, W) int32.

    Args:
        source: (V, W) uint32 or int32 words; or (V, D) bool, or floating point whose signs count.

    Raises:
        ShapeError: ``source`` holds another table. DtypeError: it holds no weights. ArgumentError: it holds a NaN.
            Nothing is written.
    """
    expected = expected_shape(words.shape[0], source, embedding_dim, name)
    if tuple(source.shape) != expected:
        raise ShapeError(name, tuple(source.shape), f"{expected} for {source.dtype}".replace("torch.", ""))
    with torch.no_grad():
        if source.dtype in (torch.uint32, torch.int32):
            words.copy_(view_words(source, "int32"))
            clear_tail(words, embedding_dim)
            return
        rows = max(1, CHUNK_WEIGHTS // embedding_dim)
        if source.is_floating_point() and any(bool(part.isnan().any()) for part in source.split(rows)):
            raise ArgumentError(name, "NaN somewhere", "free of NaN", "A NaN has no sign to keep; nothing was written.")
        for start in range(0, words.shape[0], rows):
            words[start : start + rows].copy_(view_words(pack(source[start : start + rows]), "int32"))


def expected_shape(num_embeddings: int, source: torch.Tensor, embedding_dim: int, name: str) -> tuple[int, int]:
    """Return the shape a table must have in the dtype of ``source``."""
    if source.dtype in (torch.uint32, torch.int32):
        return num_embeddings, words_per_row(embedding_dim)
    if source.dtype == torch.bool or source.is_floating_point():
        return num_embeddings, embedding_dim
    raise DtypeError(name, source.dtype, "uint32 or int32 words (V, W), or bool or floating point (V, D)")


def clear_tail(words: torch.Tensor, embedding_dim: int) -> None:
    """Zero the bits of columns >= D in (V, W) int32 words, in place."""
    mask = tail_mask(embedding_dim)
    if mask != 0xFFFFFFFF:
        words[:, -1] &= mask


def mean_magnitude(weights: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the mean |w| of each row ("row", (V,)) or of the table ("table", ()), float32.

    The magnitude that makes ``scale * sign(w)`` closest to ``w`` in squared error (Rastegari, Ordonez, Redmon,
    Farhadi, "XNOR-Net", arXiv:1603.05279, section 3.1).
    """
    if not weights.is_floating_point():
        return torch.ones(weights.shape[:1] if kind == "row" else ())
    rows = max(1, CHUNK_WEIGHTS // weights.shape[1])
    by_row = [part.detach().abs().to(torch.float64).mean(1) for part in weights.split(rows)]
    means = torch.cat(by_row) if len(weights) else torch.ones(0, dtype=torch.float64)
    if kind == "table":
        means = means.mean() if len(means) else torch.ones(())
    return means.to(torch.float32)
