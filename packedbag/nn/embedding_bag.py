"""`PackedEmbeddingBag`: `torch.nn.EmbeddingBag` with every weight in one bit."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.core.modes import check_combination, get_mode
from packedbag.nn.base import PackedModule, output_name


class PackedEmbeddingBag(PackedModule):
    """Reduce bags of rows of +-1, one bit a weight; accepts what `torch.nn.EmbeddingBag` accepts.

    Args:
        num_embeddings: V, rows of the table; 0 is allowed.
        embedding_dim: D, weights in a row; any number >= 1, multiples of 32 waste no bits.
        mode: "sum", "mean", "majority" or "max".
        padding_idx: entries with this row are left out; negative values count from the end.
        include_last_offset: whether ``offsets`` lists the end of the last bag as well.
        scale: None; "table": one learnable factor of the result, starts at 1; "row": one factor a row, trained by
            the packed optimizer ("sum" and "mean").
        bits_per_value: 1, 2, 4, 8, 16 or 32: how many neighbouring weights make one value ("sum" and "mean"). See
            the page on training.
        code: how they make it: "thermometer", their mean; "binary", their mean with weights 1, 2, 4, ... (2, 4 or 8
            bits).
        bounds: "raise", "clamp", "skip" or "unchecked": what an index outside the table does.
        output_dtype: float32 (default), float16, bfloat16; int32 for an unweighted "sum" without scale; uint32 =
            packed bits for "majority" and "max" without scale.
        device: where the table lives.
        generator: draws the first bits.

    Shapes:
        ``forward(indices, offsets=None, per_sample_weights=None)``: indices (B, L), or (N,) with offsets (B,) or
        (B + 1,); result (B, D / bits_per_value). See `packedbag.functional.embedding_bag`, and
        `packedbag.ops.autograd.PackedBagFunction` for the gradients.

    >>> module = PackedEmbeddingBag(1000, 64, mode="mean")
    >>> module(torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
    torch.Size([2, 64])
    >>> module.weight.shape, module.weight.dtype, module.nbytes
    (torch.Size([1000, 2]), torch.uint32, 8000)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: str = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        scale: str | None = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
        bounds: str = "raise",
        output_dtype: torch.dtype | None = None,
        device: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_combination(
            get_mode(mode),
            output_name(output_dtype),
            weighted=False,
            row_scale=scale == "row",
            table_scale=scale == "table",
        )
        self.mode = mode
        self.include_last_offset = include_last_offset
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

    def forward(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the reduced bags, (B, D); see the class."""
        return self._reduce(indices, offsets, per_sample_weights)
