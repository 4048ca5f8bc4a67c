"""`PackedEmbedding`: `torch.nn.Embedding` with every weight in one bit."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.nn.base import PackedModule
from packedbag.ops.functional import as_single_bags, check_lookup_dtype


class PackedEmbedding(PackedModule):
    """Look rows of +-1 up, one bit a weight.

    Args:
        num_embeddings, embedding_dim, scale, bits_per_value, code, bounds, device, generator: as in
            `packedbag.PackedEmbeddingBag`.
        padding_idx: this row reads as zeros and is not trained; negative values count from the end.
        output_dtype: float32 (default), float16 or bfloat16.

    Shapes:
        ``forward(indices)``: any shape, int32 or int64; result (*indices.shape, D / bits_per_value). An entry that
        ``bounds="skip"`` drops is a row of zeros.

    >>> PackedEmbedding(1000, 64)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        scale: str | None = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
        bounds: str = "raise",
        output_dtype: torch.dtype | None = None,
        device: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_lookup_dtype(output_dtype)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx=padding_idx,
            scale=scale,
            bits_per_value=bits_per_value,
            code=code,
            bounds=bounds,
            output_dtype=output_dtype,
            device=device,
            generator=generator,
        )

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows, (*indices.shape, D); see the class."""
        out = self._reduce(as_single_bags(indices), None, None)
        return out.view(*indices.shape, self.embedding_dim // self.bits_per_value)
