"""The optimizers of each kind of table, and the bytes that live while they train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from packedbag.core.errors import ArgumentError
from packedbag.optim import CounterSGD, dense_parameters, packed_parameters
from packedbag.recsys.model import ClickModel
from packedbag.recsys.settings import Settings


def optimizers(kind: str, model: ClickModel, settings: Settings) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return the optimizer of the tables and the optimizer of everything else.

    The fp32 twin uses Adagrad on sparse gradients: of torch's optimizers that touch only the rows of the batch
    it has the smallest state, and no other reached a better validation AUC.
    """
    if kind == "packed":
        dense = dense_parameters(model)
        tables: torch.optim.Optimizer = CounterSGD(
            packed_parameters(model),
            lr=settings.packed_lr,
            bits=settings.bits,
            decay=settings.decay,
            seed=settings.seed,
        )
    elif kind == "fp32":
        dense = list(model.perceptron.parameters())
        # torch warns unless asked for or against; the gradients come from nn.EmbeddingBag, which makes them well.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
        tables = torch.optim.Adagrad(model.tables.parameters(), lr=settings.fp32_lr)
    else:
        raise ArgumentError("kind", repr(kind), "'packed' or 'fp32'")
    return tables, torch.optim.AdamW(dense, lr=settings.lr, weight_decay=settings.weight_decay)


def table_bytes(model: ClickModel) -> int:
    """Return the bytes of the tables' weights: `words` of packed tables, `weight` of others."""
    return sum(_weight(table).nbytes for table in model.tables)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors in an optimizer's state, counted from the live tensors."""
    return sum(tensor.nbytes for tensor in _tensors(optimizer.state.values()))


def _weight(table: Any) -> torch.Tensor:
    weight: torch.Tensor = table.weight
    return weight


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
