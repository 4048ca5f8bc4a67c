"""packedbag on a GPU: behind its public module, and with its backend of stock torch operators."""

from __future__ import annotations

import os
from typing import Any

import torch

import packedbag
from benchmarks.gpu.contender import Call, Contender
from benchmarks.table import Table
from packedbag.backends.registry import ENVIRONMENT

SUM = "packedbag sum fp32"
SUM_UNCHECKED = "packedbag sum fp32, unchecked"
SUM_BF16 = "packedbag sum bf16"
MAJORITY = "packedbag majority packed"
MAJORITY_UNCHECKED = "packedbag majority packed, unchecked"
EAGER = "packedbag's torch operators (eager)"
FORMAT = "packed"


def module(table: Table, **options: Any) -> packedbag.PackedEmbeddingBag:
    """Return a module on the words of ``table``, not on a copy."""
    made = packedbag.PackedEmbeddingBag(table.shape.rows, table.shape.dim, device="meta", **options)
    made.load_state_dict({"weight": table.module.weight}, assign=True)
    assert made.words.data_ptr() == table.words.data_ptr()
    return made


def _sum(**options: Any) -> Any:
    return lambda table: Call(module(table, **options))


def _majority(**options: Any) -> Any:
    def build(table: Table) -> Call:
        packed = module(table, mode="majority", output_dtype=torch.uint32, **options)
        return Call(packed, read=lambda result: packedbag.unpack(result, table.shape.dim))

    return build


def _eager(table: Table) -> Call:
    packed = module(table)

    def call(indices: torch.Tensor) -> torch.Tensor:
        before = os.environ.get(ENVIRONMENT)
        os.environ[ENVIRONMENT] = "eager"
        try:
            out: torch.Tensor = packed(indices)
        finally:
            if before is None:
                del os.environ[ENVIRONMENT]
            else:
                os.environ[ENVIRONMENT] = before
        return out

    return Call(call)


CONTENDERS = (
    Contender(SUM, "packed", "sum", FORMAT, _sum()),
    Contender(SUM_UNCHECKED, "packed", "sum", FORMAT, _sum(bounds="unchecked")),
    Contender(SUM_BF16, "packed", "sum", FORMAT, _sum(output_dtype=torch.bfloat16)),
    Contender(MAJORITY, "packed", "majority", FORMAT, _majority()),
    Contender(MAJORITY_UNCHECKED, "packed", "majority", FORMAT, _majority(bounds="unchecked")),
    # It asks the device for the range of the indices at every call, which a graph cannot hold.
    Contender(EAGER, "packed", "sum", FORMAT, _eager, captures=False),
)
