"""The ways of training tables that are compared: what table, which optimizer."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Adam

from benchmarks.quality.config import Config
from benchmarks.quality.tables.fp32 import Fp32Table, RowwiseAdagrad
from benchmarks.quality.tables.int8 import Int8Adagrad, Int8Table
from benchmarks.quality.tables.packed import PackedTable
from benchmarks.quality.tables.straight_through import ClippedAdam, StraightThroughTable
from benchmarks.quality.tables.table import Table
from packedbag.optim import packed_parameters

OPTIMIZERS = "packedbag.optim"
#: Arguments of a table: rows, D, the run, and the field's name.
MakeTable = Callable[[int, int, Config, str], Table]
#: Arguments of an optimizer: the tables and the run. None: nothing but the scales is trained.
MakeOptimizer = Callable[[Sequence[Any], Config], Any]


class MissingMethodError(Exception):
    """The installed packedbag has no such optimizer."""


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Args:
        title: for people.
        table: makes the table of a field.
        optimizer: makes the optimizer of all tables.
        needs: the class of `packedbag.optim` that it takes, or None.
        usual_bits: k where a run says none; None where there is no choice of k.
    """

    title: str
    table: MakeTable
    optimizer: MakeOptimizer
    needs: str | None = None
    usual_bits: int | None = None


def missing(name: str) -> str | None:
    """Return why a method cannot run, or None."""
    if name not in METHODS:
        return f"there is no method {name!r}; there are {', '.join(METHODS)}"
    needs = METHODS[name].needs
    if needs is None or hasattr(importlib.import_module(OPTIMIZERS), needs):
        return None
    return f"{OPTIMIZERS} has no {needs}"


def find(name: str) -> Method:
    """Return a method, or raise `MissingMethodError`."""
    reason = missing(name)
    if reason:
        raise MissingMethodError(reason)
    return METHODS[name]


def _scale(config: Config, field: str) -> float:
    return config.field_scales.get(field, config.initial_scale)


def _packed(frozen: bool) -> MakeTable:
    def make(rows: int, dim: int, config: Config, field: str) -> Table:
        kind = {"scale": config.scale, "bits_per_value": config.bits_per_value, "code": config.code}
        return PackedTable(rows, dim, initial_scale=_scale(config, field), frozen=frozen, **kind)

    return make


def _fp32(sparse: bool) -> MakeTable:
    return lambda rows, dim, config, field: Fp32Table(rows, dim, std=config.init_std, sparse=sparse)


def _straight_through(rows: int, dim: int, config: Config, field: str) -> Table:
    return StraightThroughTable(rows, dim, std=config.init_std, initial_scale=_scale(config, field))


def _of_packedbag(name: str) -> MakeOptimizer:
    """Return what makes ``packedbag.optim.<name>``; ``bits`` goes to those that have the choice."""

    def make(tables: Sequence[Any], config: Config) -> Any:
        kind = getattr(importlib.import_module(OPTIMIZERS), name)
        options = dict(config.optimizer_options)
        if config.bits is not None and "bits" in inspect.signature(kind).parameters:
            options["bits"] = config.bits
        anchors = [anchor for table in tables for anchor in packed_parameters(table)]
        return kind(anchors, lr=config.table_lr, seed=config.seed, **options)

    return make


def _packedbag(title: str, name: str, usual_bits: int | None = None) -> Method:
    return Method(title, _packed(frozen=False), _of_packedbag(name), needs=name, usual_bits=usual_bits)


def _adam(tables: Sequence[Any], config: Config) -> Any:
    weights = [table.bag.weight for table in tables]
    return Adam(weights, lr=config.table_lr, weight_decay=config.l2, **config.optimizer_options)


def _clipped_adam(tables: Sequence[Any], config: Config) -> Any:
    latents = [table.latent for table in tables]
    return ClippedAdam(latents, lr=config.table_lr, weight_decay=config.l2, **config.optimizer_options)


METHODS: dict[str, Method] = {
    "fp32-adam": Method("fp32, Adam", _fp32(sparse=False), _adam),
    "fp32-adagrad": Method(
        "fp32, row-wise Adagrad",
        _fp32(sparse=True),
        lambda tables, config: RowwiseAdagrad([t.bag.weight for t in tables], config.table_lr, config.l2),
    ),
    "ste-adam": Method("signs of fp32 latents, Adam (STE)", _straight_through, _clipped_adam),
    "int8-adagrad": Method(
        "int8, row-wise Adagrad, stochastic rounding",
        lambda rows, dim, config, field: Int8Table(rows, dim, std=config.init_std),
        lambda tables, config: Int8Adagrad(list(tables), config.table_lr, config.l2),
    ),
    "frozen": Method("frozen random bits (control)", _packed(frozen=True), lambda tables, config: None),
    "counter": _packedbag("packed, CounterSGD", "CounterSGD", usual_bits=8),
    "counter-binary": _packedbag("packed, CounterSGD, binary values", "CounterSGD", usual_bits=2),
    "bit-flip": _packedbag("packed, BitFlip", "BitFlip"),
    "vote-flip": _packedbag("packed, VoteFlip", "VoteFlip", usual_bits=4),
    "sign-momentum": _packedbag("packed, SignMomentum", "SignMomentum"),
}
