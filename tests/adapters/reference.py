"""bitorch-engine's forward, made again from the table of its behaviour in plain torch operators: the oracle here."""

from __future__ import annotations

import math

import torch


def reference_bag(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: A002 - its name there
    """Return the votes of bags (B, L) of a bool table (V, D): +1 where at least ceil(L / 2) rows have the bit, else -1.

    The dtype is that of the indices; an empty bag needs 0 of 0 votes.
    """
    bags, length = input.shape
    rows = weight.index_select(0, input.reshape(-1)).reshape(bags, length, weight.shape[1])
    votes = torch.zeros(bags, weight.shape[1], dtype=torch.int64)
    for entry in range(length):
        votes += rows[:, entry]
    return torch.where(votes >= math.ceil(length / 2), 1, -1).to(input.dtype)


def reference_lookup(input: torch.Tensor, qweight: torch.Tensor, scale_w: torch.Tensor, dim: int) -> torch.Tensor:  # noqa: A002
    """Return rows of +-1 times their scale, (*input.shape, D) float32, of bits packed 8 to a uint8, LSB first."""
    columns = torch.arange(dim)
    bits = qweight[:, columns // 8].to(torch.int64) >> (columns % 8) & 1
    return ((2 * bits - 1) * scale_w.to(torch.float32))[input]
