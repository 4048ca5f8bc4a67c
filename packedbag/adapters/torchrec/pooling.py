"""What becomes of counted bags: sums, means and majorities, with their gradients; the same with one process or many.

A bag of +-1 rows travels as ``ones``, how many of its rows have a bit set: a small integer that a few bits hold, and
that the ranks of a row-wise plan can add. With n, how many entries the bag has, its sum is ``2 * ones - n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Pooled:
    """One feature's columns of a batch.

    Attributes:
        name: the feature's.
        mode: "sum", "mean" or "majority".
        dim: how many columns.
        is_bit: whether 0 and 1 stand for a majority that is decided already.
    """

    name: str
    mode: str
    dim: int
    is_bit: bool = False


@dataclass(frozen=True)
class Looked:
    """What a table's lookup is: bags of ``count`` features, (count * B, dim), feature by feature.

    Attributes:
        count: features of the table.
        dim: columns of its part.
        decide: whether its majority is decided here.
    """

    count: int
    dim: int
    decide: bool


class JoinCounts(torch.autograd.Function):
    """Sums of several tables -> how many bits are set, side by side, (B, columns of all features) float32.

    Where a majority is decided, 1 for it and 0; of weighted bags, the sums themselves. One pass over memory, where a
    sum, a product and a concatenation would be three. Whole numbers are exact up to 2^24.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Sequence[Looked], lengths: torch.Tensor, counted: bool, *sums: torch.Tensor
    ) -> torch.Tensor:
        """Join; lengths: (features, B), of the bags."""
        ctx.plan, batch = plan, lengths.shape[1]
        halves = lengths.to(torch.float32).mul_(0.5) if counted else lengths
        result = sums[0].new_empty(batch, sum(each.count * each.dim for each in plan))
        for out, found, half, each in _tables(plan, result, sums, halves):
            if not counted:
                out.copy_(found)
            elif each.decide:
                torch.ge(found, 0, out=out)
            else:
                torch.add(half, found, alpha=0.5, out=out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Take apart what `Finish` hands back: the gradients of the sums."""
        column, parts = 0, []
        for each in ctx.plan:
            end = column + each.count * each.dim
            of_table = grad[:, column:end]
            if each.count > 1:
                of_table = of_table.unflatten(1, (each.count, each.dim)).transpose(0, 1).flatten(0, 1)
            parts.append(of_table)
            column = end
        return None, None, None, *parts


def _tables(plan: Sequence[Looked], result: torch.Tensor, sums: Sequence[torch.Tensor], halves: torch.Tensor) -> Any:
    """Yield each table's columns of ``result``, its sums and halves of lengths, (B, count, dim or 1), and itself."""
    column = key = 0
    for each, found in zip(plan, sums, strict=True):
        end = column + each.count * each.dim
        yield (
            result[:, column:end].unflatten(1, (each.count, each.dim)),
            found.unflatten(0, (each.count, len(result))).transpose(0, 1),
            halves[key : key + each.count].T.unsqueeze(2),
            each,
        )
        column, key = end, key + each.count


class Finish(torch.autograd.Function):
    """Values (B, S) as they came over the wire -> what each feature's mode makes of them.

    What backward hands back over the wire is the gradient of bags' sums, not of the counts that stand for them: that
    would be twice as large here, and half of it again at the tables.

    The gradient with respect to a bag's sum is that of the result, for means and majorities divided by n: the mean's,
    straight through the sign (Bengio, Leonard, Courville, arXiv:1308.3432).
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, lengths: torch.Tensor, features: Sequence[Pooled], counted: bool
    ) -> torch.Tensor:
        """Return (B, S) float32; lengths: (B, F); ``counted``: the values are ones, not weighted sums."""
        ctx.features = features
        ctx.save_for_backward(lengths)
        result = torch.empty_like(values)
        for out, got, n, feature in _parts(result, values, lengths, features):
            if feature.is_bit:
                torch.add(got.new_tensor(-1.0), got, alpha=2, out=out)
                continue
            if counted:
                torch.add(-n, got, alpha=2, out=out)
            else:
                out.copy_(got)
            if feature.mode == "mean":
                out.div_(n.clamp(min=1))
            elif feature.mode == "majority":
                out.copy_(torch.where(out >= 0, 1.0, -1.0))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the gradient of the bags' sums."""
        (lengths,) = ctx.saved_tensors
        if all(feature.mode == "sum" for feature in ctx.features):
            return grad, None, None, None
        result = grad.clone()
        for out, _, n, feature in _parts(result, grad, lengths, ctx.features):
            if feature.mode != "sum":
                out.div_(n.clamp(min=1))
        return result, None, None, None


def _parts(result: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, features: Sequence[Pooled]) -> Any:
    """Yield each feature's columns of ``result`` and ``values``, its lengths (B, 1) and itself.

    Neighbours of one mode and dim are one part, (B, F, D), as far as they go: a batch has dozens of features.
    """
    floats, column, i = lengths.to(torch.float32), 0, 0
    while i < len(features):
        first, stop = features[i], i + 1
        while stop < len(features) and _alike(features[stop], first):
            stop += 1
        count, end = stop - i, column + (stop - i) * first.dim
        shape = (len(values), count, first.dim)
        # Slices of columns keep their strides: a view of them always exists.
        yield (
            result[:, column:end].unflatten(1, shape[1:]),
            values[:, column:end].unflatten(1, shape[1:]),
            floats[:, i:stop].unsqueeze(2),
            first,
        )
        column, i = end, stop


def _alike(a: Pooled, b: Pooled) -> bool:
    return (a.mode, a.dim, a.is_bit) == (b.mode, b.dim, b.is_bit)
