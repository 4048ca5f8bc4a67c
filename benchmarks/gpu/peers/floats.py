"""torch's own bags on a GPU: `F.embedding_bag` on fp32, bf16 and fp16 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding_bag

from benchmarks.gpu.contender import Call, Contender
from benchmarks.table import Table

FP32 = "F.embedding_bag fp32"
BF16 = "F.embedding_bag bf16"
FP16 = "F.embedding_bag fp16"


def weights(table: Table, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights as (V, D) of ``dtype``, where the words are."""

    def fill(table: Table) -> torch.Tensor:
        filled = torch.empty((table.shape.rows, table.shape.dim), dtype=dtype, device=table.words.device)
        for start, stop, signs in table.signs():
            filled[start:stop] = signs
        return filled

    held: torch.Tensor = table.held(str(dtype), fill)
    return held


def _sum(dtype: torch.dtype) -> Any:
    def build(table: Table) -> Call:
        weight = weights(table, dtype)
        return Call(lambda indices: embedding_bag(indices, weight, mode="sum"))

    return build


CONTENDERS = tuple(
    Contender(name, "float", "sum", str(dtype), _sum(dtype))
    for name, dtype in ((FP32, torch.float32), (BF16, torch.bfloat16), (FP16, torch.float16))
)
