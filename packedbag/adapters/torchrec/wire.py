"""What sums of +-1 cost on the wire: counts in as few bits as the batch's longest bag needs.

TorchRec's exchanges take codecs for what they send. Those here turn the counts of `packedbag.adapters.torchrec.pooling`
into 1, 2, 4, 8 or 16 bits each, several to a byte or word. A reduce-scatter adds such words as they are: a total is at
most n, so no count runs over into its neighbour's bits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torchrec.distributed.types import CommOp, NoOpQuantizedCommCodec, QuantizedCommCodecs

from packedbag.adapters.torchrec.gradient_wire import backward_codec

#: The exchanges of pooled tables.
POOLED = (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL.name, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER.name)


@dataclass
class Lanes:
    """How counts are sent: ``bits`` each; 32 stands for float32. TorchRec reads ``padded_dim_sum_per_rank``."""

    bits: int
    padded_dim_sum_per_rank: list[int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of an element on the wire. NCCL adds neither int16 nor uint32, gloo and NCCL both add these."""
        return torch.uint8 if self.bits <= 8 else torch.int32 if self.bits == 16 else torch.float32

    @property
    def per_element(self) -> int:
        """How many counts an element holds."""
        return max(1, self.dtype.itemsize * 8 // self.bits)


def pack_counts(counts: torch.Tensor, lanes: Lanes) -> torch.Tensor:
    """Return whole float32 counts (..., n * per_element) as (..., n) on the wire's dtype, the first count lowest."""
    whole = counts.to(lanes.dtype)
    per = lanes.per_element
    if per == 1:
        return whole
    grouped = whole.unflatten(-1, (-1, per))
    packed = grouped[..., 0].clone()
    for lane in range(1, per):
        packed |= grouped[..., lane] << (lane * lanes.bits)
    return packed


def unpack_counts(packed: torch.Tensor, lanes: Lanes) -> torch.Tensor:
    """Return what `pack_counts` was given."""
    per = lanes.per_element
    if per == 1:
        return packed.to(torch.float32)
    counts = torch.empty((*packed.shape, per), dtype=torch.float32, device=packed.device)
    for lane in range(per):
        counts[..., lane] = (packed >> (lane * lanes.bits)) & ((1 << lanes.bits) - 1)
    return counts.flatten(-2)


class CountCodec:
    """A `QuantizedCommCodec` of counts. `begin` says how many bits the batch that is sent next needs."""

    def __init__(self) -> None:
        self._lanes, self._even = Lanes(32), True
        # A reduce-scatter has no context: what is received was sent in this order.
        self._sent: deque[tuple[Lanes, int]] = deque()
        self.bytes = 0

    def begin(self, bits: int, *, even: bool) -> None:
        """Set the width of the next batch's counts; ``even``: all ranks have as many samples."""
        self._lanes, self._even = Lanes(bits), even

    @property
    def quantized_dtype(self) -> torch.dtype:
        """The dtype on the wire of the batch that is sent next."""
        return self._lanes.dtype

    def create_context(self) -> Lanes:
        """Return how this batch is sent, for an all-to-all."""
        return Lanes(self._lanes.bits)

    def padded_size(
        self, input_tensor: torch.Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: Lanes
    ) -> tuple[int, int]:
        """Return the columns of this rank, filled up to whole elements, and how many of them were added."""
        per = qcomm_ctx.per_element
        qcomm_ctx.padded_dim_sum_per_rank = [-(-dim // per) * per for dim in dim_per_rank]
        padded = qcomm_ctx.padded_dim_sum_per_rank[my_rank]
        return padded, padded - dim_per_rank[my_rank]

    def calc_quantized_size(self, input_len: int, ctx: Lanes) -> int:
        """Return how many elements ``input_len`` counts take."""
        return input_len // ctx.per_element

    def encode(self, input_tensor: torch.Tensor, ctx: Lanes | None = None) -> torch.Tensor:
        """Return counts as they are sent: flat for an all-to-all, (B, columns) for a reduce-scatter."""
        if ctx is not None:
            packed = pack_counts(input_tensor.reshape(-1), ctx)
        else:
            # Ranks with another number of samples are told sizes in counts: one count an element.
            lanes = self._lanes if self._even else _whole(self._lanes)
            columns = input_tensor.shape[1]
            padding = -columns % lanes.per_element
            if padding:
                input_tensor = torch.nn.functional.pad(input_tensor, (0, padding))
            packed = pack_counts(input_tensor, lanes)
            self._sent.append((lanes, columns))
        self.bytes += packed.nbytes
        return packed

    def decode(self, input_grad: torch.Tensor, ctx: Lanes | None = None) -> torch.Tensor:
        """Return received counts as float32."""
        if ctx is not None:
            return unpack_counts(input_grad, ctx)
        lanes, columns = self._sent.popleft()
        return unpack_counts(input_grad, lanes)[:, :columns]


@dataclass
class _Whole(Lanes):
    """One count an element, whatever its bits."""

    @property
    def per_element(self) -> int:
        return 1


def _whole(lanes: Lanes) -> Lanes:
    return _Whole(max(lanes.bits, 8))


class CountCodecs:
    """The codecs of one group of tables: counts forward; backward what the user's registry says, or float32.

    Args:
        registry: the sharder's, by the name of the exchange; its codecs for gradients are kept.
        bits_per_value, code: which columns are one value, and how.
    """

    def __init__(self, registry: dict[str, QuantizedCommCodecs] | None, bits_per_value: int, code: str) -> None:
        self.registry = {
            name: QuantizedCommCodecs(
                forward=CountCodec(), backward=backward_codec(registry, name, bits_per_value, code)
            )
            for name in POOLED
        }

    def begin(self, bits: int, *, even: bool) -> None:
        """Set the width of the next batch's counts in every exchange."""
        for codecs in self.registry.values():
            codecs.forward.begin(bits, even=even)


def weighted_codecs(
    registry: dict[str, QuantizedCommCodecs] | None, bits_per_value: int, code: str
) -> dict[str, QuantizedCommCodecs] | None:
    """Return the codecs of weighted bags: what ``registry`` says, or None for float32; the gradients are of values."""
    if bits_per_value == 1:
        return registry
    given = registry or {}
    return {
        name: QuantizedCommCodecs(
            forward=given[name].forward if name in given else NoOpQuantizedCommCodec(),
            backward=backward_codec(registry, name, bits_per_value, code),
        )
        for name in POOLED
    }
