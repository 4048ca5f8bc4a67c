"""`BinaryEmbeddingBag`: bitorch-engine's layer of that name, on packed words."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.bitorch_engine.module import BinaryModule, notice_ignored
from packedbag.adapters.bitorch_engine.parameter import BinaryEmbeddingParameter
from packedbag.core.errors import ArgumentError
from packedbag.ops.functional import embedding_bag

#: Besides the dtypes of gradients: those that +-1 fits in, which nothing can be differentiated through.
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
FLOATS = (None, torch.float32, torch.float16, torch.bfloat16)


class BinaryEmbeddingBag(BinaryModule):
    """Majority votes of bags of rows of bits; constructed and called as bitorch-engine's layer.

    Column j of a bag's result is +1 where at least half of its rows have bit j set, else -1: a tie is +1, and so is
    a bag of nothing. Backward goes straight through the sign (`packedbag.ops.autograd.PackedBagFunction`), and the
    rows wait for a step of `DiodeMix`, `BitFlip`, `VoteFlip` or another packed optimizer, all of which take
    ``model.parameters()``: this layer's is the anchor.

    Args:
        args: taken and ignored, with a warning, as unknown keywords are: the original ignores both in silence.
        num_embeddings: V, rows of the table.
        embedding_dim: D, bits in a row.
        padding_idx: a row of zeros (False), which is not trained; negative values count from the end.
        padding_votes: whether entries of the padding row vote, against every bit, as they do in the original; False
            leaves them out of the bag.
        output_dtype: float32 (default), float16 or bfloat16; or int8 to int64, which have no gradients. The
            original returns the dtype of the indices.
        bounds, device, generator: as in `packedbag.PackedEmbeddingBag`.

    Shapes:
        ``forward(input)``: (B, L) int32 or int64 -> (B, D). ``forward(input, offsets)``: (N,) and (B,).

    Source:
        https://github.com/GreenBitAI/bitorch-engine, layers/qembedding/binary.

    >>> layer = BinaryEmbeddingBag(num_embeddings=1000, embedding_dim=64)
    >>> layer(torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
    torch.Size([2, 64])
    >>> layer.weight.shape, layer.weight.dtype, layer.weight.nbytes
    (torch.Size([1000, 64]), torch.bool, 8000)
    """

    mode = "majority"

    def __init__(
        self,
        *args: Any,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        output_dtype: torch.dtype | None = None,
        padding_votes: bool = True,
        bounds: str = "raise",
        device: Any = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        known = "num_embeddings, embedding_dim, padding_idx, output_dtype, padding_votes, bounds, device and generator"
        notice_ignored(type(self), args, kwargs, known)
        if output_dtype not in (*FLOATS, *INTEGERS):
            seen = output_dtype if isinstance(output_dtype, torch.dtype) else repr(output_dtype)
            raise ArgumentError("output_dtype", seen, "float32, float16, bfloat16, int64, int32, int16 or int8")
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx=padding_idx,
            bounds=bounds,
            output_dtype=None if output_dtype in INTEGERS else output_dtype,
            device=device,
            generator=generator,
        )
        self.padding_votes = bool(padding_votes)
        self.integer_dtype = output_dtype if output_dtype in INTEGERS else None

    def forward(self, input: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
        """Return the votes of the bags, (B, D) of +-1; see the class."""
        if self.integer_dtype is None:
            return self._reduce(input, offsets, None)
        with torch.no_grad():
            return self._reduce(input, offsets, None).to(self.integer_dtype)

    def reset_parameters(self) -> None:  # type: ignore[override]
        """Set the padding row to zeros (False), if there is one; the other bits stay."""
        self._clear_padding()

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        shown = super().extra_repr().replace(", mode='majority'", "")
        shown += "" if self.padding_votes else ", padding_votes=False"
        return shown + (f", output_dtype={self.integer_dtype}" if self.integer_dtype else "")


class BinaryEmbeddingBagForward:
    """The function behind the layer, called as the original's: ``BinaryEmbeddingBagForward.apply(...)``."""

    @staticmethod
    def apply(input: torch.Tensor, weight: torch.Tensor, is_train: bool = True) -> torch.Tensor:  # noqa: A002
        """Return the majority votes of bags, (B, D) float32.

        Args:
            input: (B, L) int32 or int64.
            weight: a layer's weight, whose layer then learns from this call; or any bool (V, D).
            is_train: False for a result without gradients.
        """
        layer = weight.layer if isinstance(weight, BinaryEmbeddingParameter) else None
        with torch.set_grad_enabled(is_train and torch.is_grad_enabled()):
            if layer is not None:
                bags: torch.Tensor = layer(input)
                return bags
            packed = weight if isinstance(weight, BinaryEmbeddingParameter) else BinaryEmbeddingParameter(weight)
            return embedding_bag(input, packed.words, embedding_dim=packed.shape[1], mode="majority")
