"""`BinaryEmbeddingCuda`: bitorch-engine's lookup layer, on packed words, on CPU and CUDA."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.module import BinaryModule, notice_ignored
from packedbag.adapters.bitorch_engine.qweight import binarize_, qweight_view
from packedbag.core.errors import DtypeError, ShapeError
from packedbag.nn.convert import CHUNK_WEIGHTS
from packedbag.ops.functional import as_single_bags, check_lookup_dtype


class BinaryEmbeddingCuda(BinaryModule):
    """Rows of +-1 times a scale of each row; constructed and called as bitorch-engine's layer of that name.

    The original makes a float32 weight first and packs it in ``prepare_params``. Here the bits and scales of such a
    weight are drawn piece by piece, and it never exists; ``prepare_params`` is there for code that calls it.

    Args:
        args: taken and ignored, with a warning, as unknown keywords are.
        num_embeddings: V, rows of the table.
        embedding_dim: D, bits in a row.
        padding_idx: this row reads as zeros and is not trained; negative values count from the end.
        dtype: float32, float16 or bfloat16, of the result. Scales are kept in float32.
        bounds, device, generator: as in `packedbag.PackedEmbedding`.

    Shapes:
        ``forward(input)``: any shape, int32 or int64 -> (*input.shape, D).

    Source:
        https://github.com/GreenBitAI/bitorch-engine, layers/qembedding/binary.

    >>> layer = BinaryEmbeddingCuda(num_embeddings=1000, embedding_dim=20)
    >>> layer(torch.tensor([[1, 2, 3]])).shape, layer.qweight.shape, layer.scale_w.shape
    (torch.Size([1, 3, 20]), torch.Size([1000, 3]), torch.Size([1000, 1]))
    """

    def __init__(
        self,
        *args: Any,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        bounds: str = "raise",
        device: Any = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        known = "num_embeddings, embedding_dim, padding_idx, dtype, bounds, device and generator"
        notice_ignored(type(self), args, kwargs, known)
        check_lookup_dtype(dtype)
        self.dtype = dtype
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx=padding_idx,
            scale="row",
            bounds=bounds,
            output_dtype=dtype,
            device=device,
            generator=generator,
        )

    @property
    def qweight(self) -> torch.Tensor:
        """The bits, uint8 (V, ceil(D / 8)), column j in bit j % 8 of byte j // 8; shares memory with the module."""
        bits = qweight_view(self.words, self.embedding_dim)
        bits.active_indices = self.active_indices  # type: ignore[attr-defined]
        return bits

    @property
    def scale_w(self) -> torch.Tensor:
        """The scale of each row, (V, 1) float32; shares memory with the module."""
        scale: torch.Tensor = self._buffers["scale"]  # type: ignore[assignment]
        return scale.unsqueeze(1)

    @property
    def active_indices(self) -> torch.Tensor:
        """The rows that took part in backward since the last step, (K,) int64, in order of batches."""
        return super().active_indices.reshape(-1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the rows times their scales, (*input.shape, D); see the class."""
        out = self._reduce(as_single_bags(input), None, None)
        return out.view(*input.shape, self.embedding_dim)

    def prepare_params(self, weight: torch.Tensor | None = None) -> None:
        """Take bits and scales from floats; without any there is nothing to prepare.

        Args:
            weight: (V, D) floating point. The mean of all of it is subtracted; then signs become bits, and the mean
                magnitude of a row its scale.

        Raises:
            ArgumentError: it holds a NaN or an infinity; nothing was written.
        """
        if weight is None:
            return
        if not weight.is_floating_point():
            raise DtypeError("weight", weight.dtype, "floating point")
        if tuple(weight.shape) != (self.num_embeddings, self.embedding_dim):
            raise ShapeError("weight", tuple(weight.shape), f"({self.num_embeddings}, {self.embedding_dim})")
        with torch.no_grad():
            binarize_(self.words, self.scale_w[:, 0], weight)
        self._clear_padding()

    def _draw(self, generator: torch.Generator | None) -> None:
        """Draw what a weight of normal floats would give."""
        super()._draw(generator)
        if self.words.is_meta:
            return
        scale, rows = self.scale_w[:, 0], max(1, CHUNK_WEIGHTS // self.embedding_dim)
        for part in scale.split(rows):
            floats = torch.randn(len(part), self.embedding_dim, device=part.device, generator=generator)
            part.copy_(floats.abs_().mean(1))
