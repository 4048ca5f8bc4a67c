"""A table of bool, as bitorch-engine keeps it, and one of words that torch's own operators unpack."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.contender import Call, Contender
from benchmarks.pages import on_huge_pages
from benchmarks.table import Table

BOOL = "bool reference"
CHUNK_ROWS = 16384  # 8 MB of unpacked fp32 rows at D = 128: larger pieces leave the cache and are slower


def _bool(table: Table) -> Call:
    """The forward of bitorch-engine's `BinaryEmbeddingBag`: +1 where ones >= ceil(L / 2), in the indices' dtype."""

    def fill(table: Table) -> torch.Tensor:
        filled = on_huge_pages((table.shape.rows, table.shape.dim), torch.bool)
        for start, stop, signs in table.signs():
            filled[start:stop] = signs > 0
        return filled

    weight = table.held("bool", fill)

    def call(indices: torch.Tensor) -> torch.Tensor:
        ones = weight[indices].sum(1)
        return torch.where(ones >= (indices.shape[1] + 1) // 2, 1, -1).to(indices.dtype)

    return Call(call, read=lambda result: result.numpy() > 0, memory=[weight])


def _unpack(table: Table) -> Call:
    """Sum the way one would without packedbag: gather words, shift, mask, count, convert."""
    words, dim = table.words, table.shape.dim
    shifts = torch.arange(32, dtype=torch.int32)

    def call(indices: torch.Tensor) -> torch.Tensor:
        sums = []
        for part in indices.split(max(1, CHUNK_ROWS // max(1, indices.shape[1]))):
            bits = (words[part].unsqueeze(-1) >> shifts) & 1
            ones = bits.sum(dim=1, dtype=torch.int32).flatten(1)[:, :dim]
            sums.append((2 * ones - part.shape[1]).to(torch.float32))
        return torch.cat(sums)

    return Call(call, read=lambda result: np.asarray(result), memory=[words])


CONTENDERS = (
    Contender(BOOL, "bool", "majority", "bool", 1, _bool),
    Contender("unpack with torch operators", "bool", "sum", "packed", 0.125, _unpack),
)
