"""`convert`: a checkpoint of torch into a packed .safetensors file, and back."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packedbag.adapters.bitorch_engine.checkpoint import read_checkpoint
from packedbag.adapters.bitorch_engine.forms import TableRows, check_form, tensors_of
from packedbag.core.errors import ArgumentError, DataError
from packedbag.io import safetensors_tables
from packedbag.io.state_metadata import with_tables
from packedbag.io.torch_writer import write_torch

PACKED, CHECKPOINTS = ".safetensors", (".pt", ".pth", ".bin", ".ckpt")

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class ConvertedTable:
    """A table that was converted.

    Attributes:
        name: the prefix of its tensors' names.
        rows, dim: V and D.
        form: that it has in the checkpoint; see `packedbag.adapters.bitorch_engine.forms.FORMS`.
        nbytes: of its tensors in the checkpoint.
        packed_bytes: of its words and scale.
    """

    name: str
    rows: int
    dim: int
    form: str
    nbytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        source, target: the files.
        source_bytes, target_bytes: of the files.
        tables: of the files.
        others: names of the other tensors, which were copied.
        left_out: names of what is no tensor, or belongs to no model.
        assumed: D of tables, by name, where the checkpoint does not say it.
        binarized: names of tables whose bits were made of a float weight.
    """

    source: Path
    target: Path
    source_bytes: int
    target_bytes: int
    tables: list[ConvertedTable]
    others: list[str]
    left_out: list[str]
    assumed: dict[str, int]
    binarized: list[str]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    form: str | None = None,
    embedding_dim: int | None = None,
    *,
    bits_per_value: int | None = None,
    code: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Convert a checkpoint into a packed file, or a packed file into a checkpoint, piece by piece.

    The ending of ``target`` decides: .safetensors is a packed file, .pt, .pth, .bin and .ckpt are checkpoints. Tensors
    that are no tables are copied. A checkpoint that was packed and unpacked has equal tensors under equal names, and a
    packed file that was unpacked and packed has equal tables: what tensors do not show is said in the checkpoint's
    ``_metadata``, see `packedbag.io.state_metadata`.

    Args:
        source: a checkpoint as `read_checkpoint` reads it; or a packed file as
            `packedbag.io.safetensors_tables.read` reads it.
        target: the file to create or replace, in one atomic step.
        form: of tables in a checkpoint that is written, as in `write_checkpoint`; by default each table's own.
        embedding_dim: D of tables in a checkpoint that is read, where it does not say it, as in `read_checkpoint`.
        bits_per_value, code: of tables in a checkpoint that is read, where it does not say them, as in
            `read_checkpoint`.
        progress: called with the bytes that were converted, and those of all, counted as they are in the checkpoint.

    Raises:
        DataError: ``source`` is missing, cut short, damaged, or holds no packed table.
        ArgumentError: the options or endings do not go together.
        OSError: ``target`` cannot be written; an older file of that name is unchanged.
    """
    check_form(form)
    ending = Path(target).suffix.lower()
    if ending == PACKED:
        if form is not None:
            raise ArgumentError("form", repr(form), "left out where the target is a .safetensors file, of words")
        return _pack(Path(source), Path(target), progress, (embedding_dim, bits_per_value, code))
    if ending in CHECKPOINTS:
        for name, value in (("embedding_dim", embedding_dim), ("bits_per_value", bits_per_value), ("code", code)):
            if value is not None:
                raise ArgumentError(name, repr(value), "left out where the source is a packed file: it says that")
        return _unpack(Path(source), Path(target), form, progress)
    raise ArgumentError("target", target, f"a file that ends in {PACKED} (packed), or in {', '.join(CHECKPOINTS)}")


def _pack(
    source: Path, target: Path, progress: Progress, options: tuple[int | None, int | None, str | None]
) -> Conversion:
    if source.suffix.lower() == PACKED:
        raise ArgumentError("source", source, "a checkpoint of torch.save where the target is a .safetensors file")
    embedding_dim, bits_per_value, code = options
    found = read_checkpoint(source, embedding_dim, bits_per_value=bits_per_value, code=code, progress=progress)
    safetensors_tables.save(target, found.tables, found.dense)
    tables = {name: TableRows.of_table(table) for name, table in found.tables.items()}
    return Conversion(
        source,
        target,
        source.stat().st_size,
        target.stat().st_size,
        [_converted(name, table, table.form) for name, table in tables.items()],
        list(found.dense),
        found.left_out,
        found.assumed,
        found.binarized,
    )


def _unpack(source: Path, target: Path, form: str | None, progress: Progress) -> Conversion:
    if source.suffix.lower() in CHECKPOINTS:
        raise ArgumentError("source", source, "a packed .safetensors file where the target is a checkpoint")
    stored = safetensors_tables.read(source)
    content: OrderedDict[str, Any] = OrderedDict(stored.dense)
    tables, said = [], {}
    for prefix, table in stored.tables.items():
        table.verify()
        rows = TableRows.of_table(table.load())
        for part, tensor in tensors_of(rows, form or rows.form).items():
            if prefix + part in content:
                raise DataError(source, None, f"has a tensor {prefix + part!r:.100} beside table {prefix!r:.100}")
            content[prefix + part] = tensor
        said[prefix] = rows.said(form or rows.form)
        tables.append(_converted(prefix, rows, form or rows.form))
    total, done = sum(tensor.nbytes for tensor in content.values()), 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    about = {prefix: each for prefix, each in said.items() if each is not None}
    write_torch(target, with_tables(content, about), wrote=wrote)
    sizes = source.stat().st_size, target.stat().st_size
    return Conversion(source, target, *sizes, tables, list(stored.dense), [], {}, [])


def _converted(name: str, table: TableRows, form: str) -> ConvertedTable:
    nbytes = [sum(t.nbytes for t in tensors_of(table, kind).values()) for kind in (form, "words")]
    return ConvertedTable(name, table.num_embeddings, table.embedding_dim, form, *nbytes)
