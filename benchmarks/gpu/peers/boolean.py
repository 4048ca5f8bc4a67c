"""A table of bool on a GPU, one byte a weight, and packed words that torch's own operators unpack."""

from __future__ import annotations

import torch

from benchmarks.gpu.contender import Call, Contender
from benchmarks.table import Table

BOOL = "bool reference"
UNPACK = "unpack with torch operators"


def _bool(table: Table) -> Call:
    """The forward of bitorch-engine's `BinaryEmbeddingBag`: +1 where ones >= ceil(L / 2), in the indices' dtype."""

    def fill(table: Table) -> torch.Tensor:
        filled = torch.empty((table.shape.rows, table.shape.dim), dtype=torch.bool, device=table.words.device)
        for start, stop, signs in table.signs():
            filled[start:stop] = signs > 0
        return filled

    weight = table.held("bool", fill)

    def call(indices: torch.Tensor) -> torch.Tensor:
        ones = weight[indices].sum(1)
        # Not torch.where(..., 1, -1): it copies both numbers to the device at every call, and waits.
        return (ones >= (indices.shape[1] + 1) // 2).to(indices.dtype) * 2 - 1

    return Call(call, prepare=lambda indices: (indices.long(),), read=lambda result: result > 0)


def _unpack(table: Table) -> Call:
    """Sum the way one would without packedbag: gather words, shift, mask, count, convert; one entry of a bag a turn."""
    words, dim = table.words, table.shape.dim
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)

    def call(indices: torch.Tensor) -> torch.Tensor:
        bags, length = indices.shape
        ones = torch.zeros((bags, words.shape[1], 32), dtype=torch.int32, device=words.device)
        for entry in range(length):
            ones += (words.index_select(0, indices[:, entry]).unsqueeze(-1) >> shifts) & 1
        return (2 * ones.flatten(1)[:, :dim] - length).to(torch.float32)

    return Call(call)


CONTENDERS = (
    Contender(BOOL, "bool", "majority", "bool", _bool),
    Contender(UNPACK, "bool", "sum", "packed", _unpack),
)
