"""What gradients of values cost on the wire: one number a value, whatever its bits.

Forward, each column of a value is reduced and sent by itself. Backward, its columns have the same gradient, or in a
binary number 1, 2, 4, ... times that of the lowest one (`packedbag.core.value_codes.values_of`): this one is sent, and
the rank that has the columns makes the others of it. So the lowest one has the bits that it would have had among all
columns, and a sink reads no other; products with powers of 2 are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.distributed.comm_ops import ReduceScatterBaseInfo
from torchrec.distributed.dist_data import PooledEmbeddingsReduceScatter
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingDist
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingDist
from torchrec.distributed.types import Awaitable, NoOpQuantizedCommCodec, QuantizedCommCodecs


def of_values(grad: torch.Tensor, bits_per_value: int) -> torch.Tensor:
    """Return the gradients of the lowest columns, (..., D) -> (..., D / bits_per_value), contiguous."""
    return grad[..., ::bits_per_value].contiguous()


def of_columns(grad: torch.Tensor, bits_per_value: int, code: str) -> torch.Tensor:
    """Return the gradients of all columns, (..., n) -> (..., n * bits_per_value): what `of_values` was given."""
    if bits_per_value == 1:
        return grad
    columns = grad.unsqueeze(-1).expand(*grad.shape, bits_per_value)
    if code == "binary":
        columns = columns * (1 << torch.arange(bits_per_value, device=grad.device)).to(grad.dtype)
    return columns.flatten(-2)


class GradientCodec:
    """A `QuantizedCommCodec` of gradients: those of values, sent as another codec says.

    TorchRec gives it whole rows, flat or (B, D). A codec that quantizes blocks of numbers (FP8 or INT8 by rows, MX4)
    gets blocks of values: a rank's part of them has to be whole blocks.

    Args:
        codec: of the numbers that are sent.
        bits_per_value, code: which columns are one value, and how.
    """

    def __init__(self, codec: Any, bits_per_value: int, code: str) -> None:
        self._codec, self._bits, self._code = codec, bits_per_value, code

    @property
    def quantized_dtype(self) -> torch.dtype:
        """The dtype on the wire."""
        found: torch.dtype = self._codec.quantized_dtype
        return found

    def create_context(self) -> Any:
        """Return the other codec's context of a batch."""
        return self._codec.create_context()

    def padded_size(
        self, input_tensor: torch.Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: Any
    ) -> tuple[int, int]:
        """Return this rank's columns, and that none are added: exchanges fill up what goes forward alone."""
        return dim_per_rank[my_rank], 0

    def calc_quantized_size(self, input_len: int, ctx: Any = None) -> int:
        """Return how many elements are sent for ``input_len`` columns."""
        found: int = self._codec.calc_quantized_size(input_len // self._bits, ctx)
        return found

    def encode(self, input_tensor: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Return gradients of columns, (n * D,) or (n, D), as they are sent."""
        found: torch.Tensor = self._codec.encode(of_values(input_tensor, self._bits), ctx)
        return found

    def decode(self, input_grad: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Return what `encode` was given."""
        return of_columns(self._codec.decode(input_grad, ctx), self._bits, self._code)


def backward_codec(registry: dict[str, QuantizedCommCodecs] | None, name: str, bits_per_value: int, code: str) -> Any:
    """Return the codec for gradients of the exchange ``name``.

    Args:
        registry: the user's, whose codec says how numbers are sent; without one, they are sent as they are.
        name: of the exchange.
        bits_per_value, code: which columns are one value, and how.
    """
    codecs = (registry or {}).get(name)
    codec = NoOpQuantizedCommCodec() if codecs is None else codecs.backward
    return codec if bits_per_value == 1 else GradientCodec(codec, bits_per_value, code)


class ValueReduceScatter(PooledEmbeddingsReduceScatter):  # type: ignore[misc]  # TorchRec has no types
    """TorchRec's reduce-scatter, whose gradients come back as the columns of values that a `GradientCodec` makes.

    TorchRec asks a codec for the sizes of an all-to-all, but takes a gathered gradient to be as large as what was
    reduced.

    Args:
        pg: the ranks.
        codecs: of the exchange.
        bits_per_value: columns that are one value.
    """

    def __init__(self, pg: Any, codecs: QuantizedCommCodecs, bits_per_value: int) -> None:
        super().__init__(pg, codecs)
        self._bits = bits_per_value

    def forward(self, local_embs: torch.Tensor, input_splits: list[int] | None = None) -> Awaitable[torch.Tensor]:
        """Begin to add up the ranks' (B, D); TorchRec's backward is told how much it is to gather."""
        awaitable = super().forward(local_embs, input_splits)
        info = getattr(awaitable._tensor_awaitable, "rsi", None)  # a rank alone exchanges nothing
        if info is not None:
            # Backward alone reads these two.
            name = "input_sizes" if isinstance(info, ReduceScatterBaseInfo) else "total_input_size"
            setattr(info, name, (len(local_embs), local_embs.shape[1] // self._bits))
        return awaitable


def return_values(output_dist: nn.Module, bits_per_value: int) -> None:
    """Let gradients of values come back through an output distribution of TorchRec's, in place."""
    if bits_per_value == 1:
        return
    if isinstance(output_dist, RwPooledEmbeddingDist):
        output_dist._dist = ValueReduceScatter(output_dist._pg, output_dist._codecs, bits_per_value)
    elif isinstance(output_dist, TwRwPooledEmbeddingDist):
        output_dist._create_output_dist_modules()
        output_dist._intra_dist = ValueReduceScatter(output_dist._intra_pg, output_dist._intra_codecs, bits_per_value)
