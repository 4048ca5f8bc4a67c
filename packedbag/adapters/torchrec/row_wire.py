"""What rows of +-1 cost on the wire: one bit a weight, each row filled up to whole bytes."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from packedbag.adapters.torchrec.gradient_wire import backward_codec
from packedbag.core.layout import BITS_PER_WORD, words_per_row
from packedbag.ops.packing import pack, unpack


class RowCodec:
    """A `QuantizedCommCodec` of rows.

    TorchRec gives it whole rows, flat, and their sizes in numbers: ``dim`` tells where a row ends, so that its last
    byte holds nothing of the next one.

    Args:
        dim: D, columns of each row.
    """

    quantized_dtype = torch.uint8

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.width = -(-dim // 8)
        self.bytes = 0

    def create_context(self) -> None:
        """Return nothing: all batches are sent alike."""

    def padded_size(
        self, input_tensor: torch.Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: Any
    ) -> tuple[int, int]:
        """Return this rank's columns, and that none are added: exchanges of rows know their sizes."""
        return dim_per_rank[my_rank], 0

    def calc_quantized_size(self, input_len: int, ctx: Any = None) -> int:
        """Return how many bytes ``input_len`` numbers take, which are whole rows."""
        return input_len // self.dim * self.width

    def encode(self, input_tensor: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Return rows of +-1, (n * D,) or (n, D) float32, as (n * ceil(D / 8),) uint8."""
        rows = input_tensor.reshape(-1, self.dim)
        packed = pack(rows >= 0).view(torch.uint8)[:, : self.width].reshape(-1)
        self.bytes += packed.nbytes
        return packed

    def decode(self, input_grad: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Return what `encode` was given, (n * D,) float32."""
        received = input_grad.view(-1, self.width)
        padded = received.new_zeros(len(received), words_per_row(self.dim) * (BITS_PER_WORD // 8))
        padded[:, : self.width] = received
        return unpack(padded.view(torch.int32), self.dim).to(torch.float32).mul_(2).sub_(1).view(-1)


def row_codecs(
    registry: dict[str, QuantizedCommCodecs] | None, dim: int, bits_per_value: int, code: str
) -> dict[str, QuantizedCommCodecs]:
    """Return the codecs of one group of tables: bits forward; backward what ``registry`` says, or float32.

    Args:
        registry: the sharder's, by the name of the exchange.
        dim: D, columns of each row.
        bits_per_value, code: which columns are one value, and how.
    """
    name = CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL.name
    backward = backward_codec(registry, name, bits_per_value, code)
    return {name: QuantizedCommCodecs(forward=RowCodec(dim), backward=backward)}
