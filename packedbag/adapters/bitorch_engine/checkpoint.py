"""Checkpoints of bitorch-engine, written and read in pieces of a few MB."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from packedbag.adapters.bitorch_engine.checkpoint_tables import Checkpoint, check_values, find_tables
from packedbag.adapters.bitorch_engine.forms import TableRows, check_form, tensors_of
from packedbag.adapters.bitorch_engine.lookup import BinaryEmbeddingCuda
from packedbag.adapters.bitorch_engine.packed_bools import PackedBools
from packedbag.adapters.bitorch_engine.state_search import find_state
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import check_words
from packedbag.io.dense_tensor import DenseTensor
from packedbag.io.state_metadata import with_tables
from packedbag.io.torch_file import TorchFile
from packedbag.io.torch_writer import write_torch
from packedbag.nn.base import PackedModule
from packedbag.table import PackedTable

WEIGHT = "weight"


def write_checkpoint(
    source: torch.nn.Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    form: str | None = None,
    *,
    embedding_dim: int | None = None,
) -> None:
    """Write a state dict that `torch.load` reads without packedbag, in one atomic step.

    Tables are unpacked piece by piece: a table of V x D takes V * D bytes in the file, as bools, and a few MB of memory
    beyond its words. All else is written as it is; anchors, which mean nothing, are left out.

    Args:
        source: a model; or a state dict, where a table is a `PackedTable`, the weight of a layer of this package, or
            words, uint32 (V, W), under a name that ends in "weight".
        path: the file to create or replace.
        form: of tables: "bool", ``weight`` bool (V, D); "qweight", ``qweight`` uint8 (V, ceil(D / 8)) and ``scale_w``
            float32 (V, 1); or "words", ``weight`` uint32 (V, W), as `state_dict` has it. By default each table has
            the form that bitorch-engine's layer of its kind has, or, read from a checkpoint, the form it had there.
        embedding_dim: D of tables that a state dict has as words, which do not say it.

    Raises:
        ArgumentError: ``source`` has no packed table, or does not say the D of one.
        OSError: the file cannot be written; an older file of that name is unchanged.
    """
    check_form(form)
    state = source.state_dict() if isinstance(source, torch.nn.Module) else source
    if not isinstance(state, Mapping):
        raise ArgumentError("source", f"a {type(source).__name__}", "a module, or a state dict")
    found = _of_module(source) if isinstance(source, torch.nn.Module) else _of_state(state, embedding_dim)
    if not found:
        raise ArgumentError("source", "without a packed table", "a model or state dict with one", "Use torch.save.")
    # Modules that occur twice are one table, and are written once.
    made = {id(table): tensors_of(table, form or table.form) for table in found.values()}
    named = {name[: -len(WEIGHT)]: made[id(table)] for name, table in found.items()}
    said = {name[: -len(WEIGHT)]: table.said(form or table.form) for name, table in found.items()}
    about = {prefix: each for prefix, each in said.items() if each is not None}
    write_torch(path, with_tables(_replaced(state, named, found), about))


def read_checkpoint(
    path: str | os.PathLike[str],
    embedding_dim: int | None = None,
    *,
    bits_per_value: int | None = None,
    code: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Checkpoint:
    """Read the tables of a checkpoint of `torch.save`, packing them piece by piece.

    Tables are ``weight``, bool (V, D); ``qweight``, uint8 (V, ceil(D / 8)), with ``scale_w`` (V, 1) beside it; and
    ``weight``, uint32 words (V, W). A ``qweight`` of zeros beside a float ``weight`` (V, D) was never prepared: then
    the signs of the weight minus its mean count, and the scale of a row is its mean magnitude. All other tensors stay
    in the file, to be read when they are written elsewhere.

    Args:
        path: a state dict, or a checkpoint with one inside, in torch's zip format. Nothing in it is executed.
        embedding_dim: D of ``qweight`` and words of its width; of others 8 or 32 times the width is taken.
        bits_per_value, code: of all tables of which the file says nothing; None: each bit is a value. Where 2, 4 or 8
            make one, the code is to be given.
        progress: called with the bytes that were read of tensors, and those of all.

    Raises:
        DataError: the file is missing, cut short, damaged, something else, or holds no such table.
        ArgumentError: ``embedding_dim``, ``bits_per_value`` or ``code`` is out of range, or fits no table.
    """
    total = done = 0

    def read(nbytes: int) -> None:
        nonlocal done
        done = min(done + nbytes, total)
        progress(done, total)

    file = TorchFile(path, read)
    values = check_values(bits_per_value, code)
    state, left_out, said = find_state(Path(path), file.content)
    for name, tensor in state.items():
        file.check(tensor, name)
    total = sum(file.dense(tensor).nbytes for tensor in state.values())
    return find_tables(file, state, left_out, embedding_dim, said, values)


def _of_module(model: torch.nn.Module) -> dict[str, TableRows]:
    """Return the tables of a model, by the names of their weights."""
    found: dict[str, TableRows] = {}
    made: dict[int, TableRows] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedModule):
            if id(module) not in made:
                form = "qweight" if isinstance(module, BinaryEmbeddingCuda) else "bool"
                made[id(module)] = TableRows.of_module(module, form)
            found[f"{name}.{WEIGHT}" if name else WEIGHT] = made[id(module)]
    return found


def _of_state(state: Mapping[str, Any], embedding_dim: int | None) -> dict[str, TableRows]:
    """Return the tables of a state dict, by the names of their weights."""
    found = {}
    for name, value in state.items():
        is_words = isinstance(value, torch.Tensor) and value.dtype == torch.uint32 and value.ndim == 2
        if isinstance(value, PackedBools):
            table = PackedTable(value.words.cpu().numpy(), value.shape[1])
        elif isinstance(value, PackedTable):
            table = value
        elif is_words and str(name).endswith(WEIGHT):
            table = _table_of_words(state, name, embedding_dim)
        else:
            continue
        if not str(name).endswith(WEIGHT):
            raise ArgumentError("source", f"holding a packed table under {name!r}", "names that end in 'weight'")
        found[name] = TableRows.of_table(table)
    return found


def _table_of_words(state: Mapping[str, Any], name: str, embedding_dim: int | None) -> PackedTable:
    words, scale = state[name], state.get(name[: -len(WEIGHT)] + "scale")
    if embedding_dim is None:
        most = 32 * words.shape[1]
        allowed = f"given for {name!r}: its {words.shape[1]} words a row hold {most - 31} to {most} weights"
        raise ArgumentError("embedding_dim", None, allowed, "Or pass the model.")
    check_words(words, embedding_dim, name)
    taken = None
    if isinstance(scale, torch.Tensor) and scale.dtype == torch.float32 and scale.shape in ((), words.shape[:1]):
        taken = scale.detach().cpu().numpy()
    return PackedTable(words.detach().cpu().numpy(), embedding_dim, taken)


def _replaced(
    state: Mapping[str, Any], named: Mapping[str, Mapping[str, DenseTensor]], found: Mapping[str, TableRows]
) -> OrderedDict[str, Any]:
    """Return a state dict with the tensors of tables in the places of their words."""
    out: OrderedDict[str, Any] = OrderedDict()
    if hasattr(state, "_metadata"):  # the versions of modules, by which torch converts old state dicts
        out._metadata = state._metadata  # type: ignore[attr-defined]
    dropped = {prefix + "anchor" for prefix in named}
    dropped |= {prefix + "scale" for prefix in named if found[prefix + WEIGHT].scale is not None}
    for name, value in state.items():
        if name in found:
            prefix = name[: -len(WEIGHT)]
            out |= {prefix + part: tensor for part, tensor in named[prefix].items()}
        elif name not in dropped:
            out[name] = value
    return out
