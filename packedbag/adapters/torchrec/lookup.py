"""`PackedLookup`: reduces the features of some tables, or parts of tables, that one process holds."""

from __future__ import annotations

from typing import Any

import torch

from packedbag.adapters.torchrec.pooling import JoinCounts, Looked
from packedbag.nn.embedding_bag import PackedEmbeddingBag
from packedbag.ops.shard import Shard


class PackedPart(PackedEmbeddingBag):
    """A part of a table: rows and whole words of columns, reduced by sums, a number for each column.

    Args:
        num_embeddings, embedding_dim: of the part.
        shard: where it lies in its table; None: it is all of it.
        device: where the part lies.
        bits_per_value, code: which columns are one value in the end, and how; the optimizer is to know.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        shard: Shard | None,
        device: Any = None,
        bits_per_value: int = 1,
        code: str = "thermometer",
    ) -> None:
        # Indices are judged before they are sent to whoever has the row: here all are inside.
        options: dict[str, Any] = {"include_last_offset": True, "bounds": "unchecked", "device": device}
        super().__init__(num_embeddings, embedding_dim, bits_per_value=bits_per_value, code=code, **options)
        self.shard = shard

    def forward(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return sums, (B, columns): what becomes of them is decided where the bags are."""
        return self._columns(indices, offsets, per_sample_weights)

    def _draw(self, generator: torch.Generator | None) -> None:
        """Leave the words: `packedbag.adapters.torchrec.first_bits` draws them, or they are loaded."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load the words of a whole table; `ShardedTable` loads those of its parts."""
        if self.shard is None:
            super()._load_from_state_dict(*args, **kwargs)

    def _notice_ddp(self) -> None:
        """Take no part in a surrounding DDP: its ranks have other parts of the table."""


class PackedLookup(torch.nn.Module):
    """Reduces each table's features in one call.

    Args:
        parts: the tables' parts.
        features: how many features each of them has.
        decides: whether each is a table whose majority is decided here.
        weighted: whether features have weights.
    """

    def __init__(self, parts: list[PackedPart], features: list[int], decides: list[bool], *, weighted: bool) -> None:
        super().__init__()
        # In a list of its own: the collection registers the parts by the names of their tables.
        self._parts = parts
        self._plan = [
            Looked(count, part.embedding_dim, decide)
            for part, count, decide in zip(parts, features, decides, strict=True)
        ]
        self.weighted = weighted

    def forward(self, features: Any, order: torch.Tensor | None = None) -> torch.Tensor:
        """Return what `packedbag.adapters.torchrec.pooling` makes bags of, (B, columns of all features) float32.

        Args:
            features: a KeyedJaggedTensor of these tables' features, in their order.
            order: (B,), the batch's place in the order of all processes' samples; None: it is in that order.
        """
        stride, ends = features.stride(), features.offset_per_key()
        values, offsets, weights = features.values(), features.offsets(), features.weights_or_none()
        if not self._parts:
            return torch.empty(stride, 0, device=values.device, requires_grad=torch.is_grad_enabled())
        sums, key = [], 0
        for part, plan in zip(self._parts, self._plan, strict=True):
            first, last = ends[key], ends[key + plan.count]
            bags = offsets[key * stride : (key + plan.count) * stride + 1] - first
            indices, entries = values[first:last], None
            if self.weighted and weights is not None:
                entries = weights[first:last]
            if order is not None and torch.is_grad_enabled():
                sums.append(_in_order(part, indices, bags, entries, order, plan.count))
            else:
                sums.append(part(indices, bags, entries))
            key += plan.count
        lengths = features.lengths().view(key, stride)
        joined: torch.Tensor = JoinCounts.apply(self._plan, lengths, not self.weighted, *sums)
        if torch.is_grad_enabled() and not joined.requires_grad:
            joined.requires_grad_()  # all frozen here: other ranks' backward waits for this rank's part in it
        return joined


def _in_order(
    part: PackedPart,
    indices: torch.Tensor,
    bags: torch.Tensor,
    weights: torch.Tensor | None,
    order: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """Return the bags as they came, with their gradients pushed in the order of all processes' samples."""
    stride = len(order)
    by_sample = torch.argsort(order)
    picked = torch.cat([by_sample + feature * stride for feature in range(count)])
    lengths = bags.diff()
    starts, taken = bags[:-1][picked], lengths[picked]
    ends = torch.nn.functional.pad(taken.cumsum(0), (1, 0))
    places = torch.arange(len(indices), device=indices.device) + torch.repeat_interleave(starts - ends[:-1], taken)
    found = part(indices[places], ends.to(bags.dtype), None if weights is None else weights[places])
    return found[torch.argsort(picked)]
