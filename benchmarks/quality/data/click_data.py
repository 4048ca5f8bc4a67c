"""What every data set comes to: ids field by field, labels, and which rows train, tune and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class MissingDataError(Exception):
    """The data are not here; the message says how to bring them."""


@dataclass(frozen=True)
class BagField:
    """A field of any number of ids.

    Args:
        name: of the field.
        rows: of its table.
        ids: (M, L) int64, -1 where there is no id.
        by: the single-valued field whose id says which of the M bags is meant; None: M is N, each row has its own.
    """

    name: str
    rows: int
    ids: torch.Tensor
    by: int | None = None


class Batch(NamedTuple):
    """``single`` (B, F) int64; for each bag field its ids one after another and offsets (B + 1,); ``labels`` (B,)."""

    single: torch.Tensor
    bags: list[tuple[torch.Tensor, torch.Tensor]]
    labels: torch.Tensor


@dataclass(frozen=True)
class ClickData:
    """A data set in memory.

    Args:
        names: (F,) of the single-valued fields, and ``rows`` of their tables.
        single: (N, F) int64, each field counted from 0.
        bags: the other fields.
        labels: (N,) float32 of 0 and 1.
        train, valid, test: int64 positions.
        best: "auc" and "log_loss" of the true probabilities on the test rows, where they are known.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    single: torch.Tensor
    bags: tuple[BagField, ...]
    labels: torch.Tensor
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    best: dict[str, float] | None = None

    def tables(self) -> list[tuple[str, int]]:
        """Return name and rows of each table, single-valued fields first."""
        return [*zip(self.names, self.rows, strict=True), *((bag.name, bag.rows) for bag in self.bags)]

    def batch(self, positions: torch.Tensor) -> Batch:
        """Return the rows at ``positions`` (B,), in that order."""
        single = self.single[positions]
        bags = []
        for bag in self.bags:
            ids = bag.ids[positions if bag.by is None else single[:, bag.by]]
            real = ids >= 0
            offsets = torch.zeros(len(ids) + 1, dtype=torch.int64)
            torch.cumsum(real.sum(1), 0, out=offsets[1:])
            bags.append((ids[real], offsets))
        return Batch(single, bags, self.labels[positions])
