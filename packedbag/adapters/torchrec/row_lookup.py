"""`RowLookup` and `ReplicatedRows`: the rows of some tables that one process holds, one for each index, unreduced."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.comm_ops import get_gradient_division

from packedbag.adapters.torchrec.gradient_wire import of_columns, of_values
from packedbag.adapters.torchrec.lookup import PackedPart
from packedbag.adapters.torchrec.replicated import Replicated, ragged
from packedbag.optim.gather import all_gather


class RowLookup(torch.nn.Module):
    """Looks each table's features up in one call.

    Args:
        parts: the tables' parts, of D columns each.
        features: how many features each of them has.
        dim: D.
        exchanged: whether the rows go to other ranks, which send their gradients back: all ranks must then take part in
            backward, those without a table or with none to train as well.
    """

    def __init__(self, parts: list[PackedPart], features: list[int], dim: int, *, exchanged: bool = False) -> None:
        super().__init__()
        # In a list of its own: the collection registers the parts by the names of their tables.
        self._parts = parts
        self.features, self.dim, self.exchanged = features, dim, exchanged

    @property
    def parts(self) -> list[PackedPart]:
        """The tables' parts."""
        return self._parts

    def forward(self, features: Any) -> torch.Tensor:
        """Return the rows of a KeyedJaggedTensor's values, (N, D) float32: feature by feature, as they are given."""
        values, ends, key = features.values(), features.offset_per_key(), 0
        found = []
        for part, count in zip(self._parts, self.features, strict=True):
            # The sum of one row is the row.
            found.append(part(values[ends[key] : ends[key + count]].unsqueeze(1)))
            key += count
        rows = torch.cat(found) if found else torch.empty(0, self.dim, device=values.device)
        if self.exchanged and torch.is_grad_enabled() and not rows.requires_grad:
            rows.requires_grad_()
        return rows


class ReplicatedRows(torch.nn.Module):
    """Looks up in tables that every rank holds whole; in backward, all ranks exchange gradients and indices.

    So every rank's sinks get what those of one process with the whole batch would, in its order, and all ranks take the
    same step.

    Args:
        lookup: of all these tables.
        process_group: the ranks.
    """

    def __init__(self, lookup: RowLookup, process_group: Any) -> None:
        super().__init__()
        self.lookup, self.process_group = lookup, process_group

    def forward(self, features: Any) -> torch.Tensor:
        """Return the rows, as `RowLookup.forward` does."""
        if not torch.is_grad_enabled():
            found: torch.Tensor = self.lookup(features)
            return found
        return Replicated.apply(self, features, *(part.anchor for part in self.lookup.parts))

    def push(self, features: Any, grad: torch.Tensor) -> list[torch.Tensor]:
        """Leave the gradients of all ranks in the sinks; return what they add to the anchors'.

        Args:
            features: this rank's.
            grad: (N, D), of what `forward` returned.
        """
        group = self.process_group
        size = dist.get_world_size(group)
        if get_gradient_division():
            grad = grad / size
        counts = torch.tensor(features.length_per_key(), dtype=torch.int64, device=grad.device)
        pieces = [each.tolist() for each in all_gather(counts, group)]
        totals = [sum(each) for each in pieces]
        values, grads = (
            [each.split(piece) for each, piece in zip(ragged(mine, totals, group), pieces, strict=True)]
            for mine in (features.values(), of_values(grad, self.lookup.parts[0].bits_per_value))
        )
        key, pushed = 0, []
        for part, count in zip(self.lookup.parts, self.lookup.features, strict=True):
            order = [(rank, k) for k in range(key, key + count) for rank in range(size)]
            if part.anchor.requires_grad:
                indices = torch.cat([values[rank][k] for rank, k in order]).unsqueeze(1)
                rows = torch.cat([grads[rank][k] for rank, k in order])
                pushed.append(part.sink.push(indices, None, None, of_columns(rows, part.bits_per_value, part.code)))
            else:
                pushed.append(torch.zeros_like(part.anchor))
            key += count
        return pushed
