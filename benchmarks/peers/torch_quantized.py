"""torch's row-wise quantized bags: 8, 4 and 2 bits a weight, with a scale and an offset in every row."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contender import Batch, Call, Contender
from benchmarks.pages import on_huge_pages
from benchmarks.table import Table

NAMES = {8: "byte", 4: "4bit", 2: "2bit"}
#: 4 and 2 bits keep the row's scale in fp16: 2/15 and 2/3 are off by up to 5e-4 once multiplied by the code.
TOLERANCE = {8: 1e-6, 4: 6e-4, 2: 6e-4}
EXTRA_BYTES = {8: 8, 4: 4, 2: 4}


def _build(bits: int) -> Any:
    prepack = getattr(torch.ops.quantized, f"embedding_bag_{NAMES[bits]}_prepack")
    operator = getattr(torch.ops.quantized, f"embedding_bag_{NAMES[bits]}_rowwise_offsets")

    def fill(table: Table) -> torch.Tensor:
        filled = None
        for start, stop, signs in table.signs():
            rows = prepack(signs)
            if filled is None:
                filled = on_huge_pages((table.shape.rows, rows.shape[1]), torch.uint8)
            filled[start:stop] = rows
        assert filled is not None
        return filled

    def build(table: Table) -> Call:
        weight = table.held(f"torch {bits} bit", fill)

        def call(flat: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = operator(weight, flat, starts)
            return result

        return Call(call, prepare=_starts, tolerance=TOLERANCE[bits], memory=[weight])

    return build


def _starts(batch: Batch) -> tuple[Any, ...]:
    return batch.flat, batch.offsets[:-1]


CONTENDERS = tuple(
    Contender(f"torch quantized {bits} bit", "low-bit", "sum", f"torch {bits} bit", bits / 8 + 0.06, _build(bits))
    for bits in NAMES
)
