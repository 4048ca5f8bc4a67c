"""torch's own bags: `F.embedding_bag` on fp32 and bf16 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding_bag

from benchmarks.contender import Batch, Call, Contender, only_few_bags
from benchmarks.pages import on_huge_pages
from benchmarks.table import Table

FP32 = "F.embedding_bag fp32"
FP32_WEIGHTED = "F.embedding_bag fp32, weighted"
FP32_GRAD = "F.embedding_bag fp32, gradients on"
#: bf16 sums of up to 50 entries are exact integers below 256, so only weighted ones would need a tolerance.
ROUNDING = 1e-5


def weights(table: Table, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights as (V, D) of ``dtype`` on huge pages."""

    def fill(table: Table) -> torch.Tensor:
        filled = on_huge_pages((table.shape.rows, table.shape.dim), dtype)
        for start, stop, signs in table.signs():
            filled[start:stop] = signs
        return filled

    held: torch.Tensor = table.held(str(dtype), fill)
    return held


def _sum(dtype: torch.dtype) -> Any:
    def build(table: Table) -> Call:
        weight = weights(table, dtype)
        return Call(lambda indices: embedding_bag(indices, weight, mode="sum"), memory=[weight])

    return build


def _weighted(table: Table) -> Call:
    weight = weights(table, torch.float32)

    def call(indices: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return embedding_bag(indices, weight, mode="sum", per_sample_weights=factors)

    return Call(call, prepare=with_weights, tolerance=ROUNDING, memory=[weight])


def with_weights(batch: Batch) -> tuple[Any, ...]:
    """Return indices and per-sample weights, both (B, L)."""
    return batch.indices, batch.weights


def _module(table: Table) -> Call:
    weight = weights(table, torch.float32)
    return Call(torch.nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="sum"), memory=[weight])


def _function_with_gradients(table: Table) -> Call:
    parameter = torch.nn.Parameter(weights(table, torch.float32))
    return Call(
        lambda indices: embedding_bag(indices, parameter, mode="sum"),
        read=lambda result: result.detach().numpy(),
        memory=[parameter.data],
    )


def _module_with_gradients(table: Table) -> Call:
    call = _module(table)
    call.read = lambda result: result.detach().numpy()
    return call


FP32_FORMAT = str(torch.float32)
CONTENDERS = (
    Contender(FP32, "float", "sum", FP32_FORMAT, 4, _sum(torch.float32)),
    Contender("F.embedding_bag bf16", "float", "sum", str(torch.bfloat16), 2, _sum(torch.bfloat16)),
    Contender(FP32_WEIGHTED, "float", "weighted", FP32_FORMAT, 4, _weighted),
    Contender("nn.EmbeddingBag fp32", "float", "sum", FP32_FORMAT, 4, _module, fits=only_few_bags),
    Contender(FP32_GRAD, "float", "sum", FP32_FORMAT, 4, _function_with_gradients, fits=only_few_bags, grad=True),
    Contender(
        "nn.EmbeddingBag fp32, gradients on",
        "float",
        "sum",
        FP32_FORMAT,
        4,
        _module_with_gradients,
        fits=only_few_bags,
        grad=True,
    ),
)
