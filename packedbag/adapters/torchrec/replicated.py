"""`ReplicatedLookup`: tables that every rank holds whole, and that all of them train by the gradients of all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torchrec.distributed.comm_ops import get_gradient_division

from packedbag.adapters.torchrec.gradient_wire import of_columns, of_values
from packedbag.adapters.torchrec.lookup import PackedLookup, PackedPart
from packedbag.optim.gather import all_gather


class ReplicatedLookup(torch.nn.Module):
    """Reduces the features of this rank; in backward, all ranks exchange gradients and indices.

    So every rank's sinks get what those of one process with the whole batch would, in its order, and all ranks take the
    same step.

    Args:
        lookup: of all tables, which decides no majorities.
        parts: its tables.
        features: how many features each of them has.
        process_group: the ranks.
    """

    def __init__(self, lookup: PackedLookup, parts: list[PackedPart], features: list[int], process_group: Any) -> None:
        super().__init__()
        self.lookup, self.parts, self.features = lookup, parts, features
        self.process_group = process_group

    def forward(self, features: Any, order: torch.Tensor | None = None) -> torch.Tensor:
        """Return the bags, as `PackedLookup.forward` does."""
        if not torch.is_grad_enabled():
            found: torch.Tensor = self.lookup(features)
            return found
        return Replicated.apply(self, features, *(part.anchor for part in self.parts))

    def push(self, features: Any, grad: torch.Tensor) -> list[torch.Tensor]:
        """Leave the gradients of all ranks in the sinks; return what they add to the anchors'.

        Args:
            features: this rank's.
            grad: (B, columns), of what `forward` returned.
        """
        group = self.process_group
        if get_gradient_division():
            grad = grad / dist.get_world_size(group)
        weights, keys, size = features.weights_or_none(), len(features.keys()), dist.get_world_size(group)
        told = torch.tensor([len(grad), features.values().numel()], device=grad.device)
        batches, entries = (list(column) for column in zip(*(t.tolist() for t in all_gather(told, group)), strict=True))
        bits, code = self.parts[0].bits_per_value, self.parts[0].code
        grads = of_columns(torch.cat(ragged(of_values(grad, bits), batches, group)), bits, code)
        flat = ragged(features.lengths(), [batch * keys for batch in batches], group)
        lengths = [each.view(keys, batch) for each, batch in zip(flat, batches, strict=True)]
        values = ragged(features.values(), entries, group)
        loads = None if weights is None else ragged(weights.to(torch.float32), entries, group)
        pieces = [length.sum(1).tolist() for length in lengths]
        by_key = [torch.split(value, piece) for value, piece in zip(values, pieces, strict=True)]
        loads_by_key = None if loads is None else [torch.split(w, p) for w, p in zip(loads, pieces, strict=True)]
        key, column, pushed = 0, 0, []
        for part, count in zip(self.parts, self.features, strict=True):
            order = [(k, rank) for k in range(key, key + count) for rank in range(size)]
            bags = torch.cat([lengths[rank][k] for k, rank in order]).cumsum(0)
            indices = torch.cat([by_key[rank][k] for k, rank in order])
            entry_weights = None if loads_by_key is None else torch.cat([loads_by_key[rank][k] for k, rank in order])
            columns = grads[:, column : column + count * part.embedding_dim]
            lines = columns.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)
            offsets = torch.nn.functional.pad(bags, (1, 0))
            if part.anchor.requires_grad:
                pushed.append(part.sink.push(indices, offsets, entry_weights, lines))
            else:
                pushed.append(torch.zeros_like(part.anchor))
            key, column = key + count, column + count * part.embedding_dim
        return pushed


class Replicated(torch.autograd.Function):
    """The ``lookup`` of a replica of tables, whose gradients its ``push`` exchanges with the other ranks."""

    @staticmethod
    def forward(ctx: Any, replica: Any, features: Any, *anchors: torch.Tensor) -> torch.Tensor:
        """Look this rank's features up."""
        ctx.replica, ctx.features = replica, features
        found: torch.Tensor = replica.lookup(features)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients of the anchors."""
        return None, None, *ctx.replica.push(ctx.features, grad)


def ragged(tensor: torch.Tensor, lengths: list[int], group: Any) -> list[torch.Tensor]:
    """Return a tensor of every rank, each with as many lines as ``lengths`` says."""
    padded = tensor.new_zeros((max(lengths), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return [part[:n] for part, n in zip(all_gather(padded, group), lengths, strict=True)]
