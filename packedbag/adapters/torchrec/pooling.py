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


class CountOnes(torch.autograd.Function):
    """Sums (B, D) and lengths (B,) -> how many bits are set, or with ``decide`` whether the majority is."""

    @staticmethod
    def forward(ctx: Any, sums: torch.Tensor, lengths: torch.Tensor, decide: bool) -> torch.Tensor:
        """Return float32 whole numbers: exact up to 2^24."""
        if decide:
            return (sums >= 0).to(torch.float32)
        return (sums + lengths.to(torch.float32).unsqueeze(1)).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Half the gradient: a sum changes by 2 where a count changes by 1. Exact."""
        return grad * 0.5, None, None


class Finish(torch.autograd.Function):
    """Values (B, S) as they came over the wire -> what each feature's mode makes of them.

    The gradient with respect to a bag's sum is that of the result, for means and majorities divided by n: the mean's,
    straight through the sign (Bengio, Leonard, Courville, arXiv:1308.3432).
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, lengths: torch.Tensor, features: Sequence[Pooled], counted: bool
    ) -> torch.Tensor:
        """Return (B, S) float32; lengths: (B, F); ``counted``: the values are ones, not weighted sums."""
        ctx.features, ctx.counted = features, counted
        ctx.save_for_backward(lengths)
        result = torch.empty_like(values)
        for out, got, n, feature in _parts(result, values, lengths, features):
            if feature.is_bit:
                torch.add(got * 2, -1, out=out)
                continue
            if counted:
                torch.sub(got * 2, n, out=out)
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
        """Return the gradient of the values; a count is worth two of a sum."""
        (lengths,) = ctx.saved_tensors
        result = grad * 2 if ctx.counted else grad.clone()
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
