"""Sharded tables as files that serve on one machine, without any rank holding a table."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import get_unwrapped_module

from packedbag.adapters.torchrec.sharded_table import ShardedTable, ShardedTables
from packedbag.core.errors import ArgumentError
from packedbag.core.layout import BITS_PER_WORD, words_per_row
from packedbag.io.tables import save
from packedbag.table import PackedTable

#: Bytes of words that travel at once.
PIECE = 8 << 20


def export(model: torch.nn.Module, path: str | os.PathLike[str], *, file_format: str | None = None) -> None:
    """Write the sharded tables of ``model`` to one file, as `packedbag.save` does; all ranks must call.

    Words pass through rank 0 in pieces of 8 MB, to a file beside ``path`` that is mapped into memory and removed in the
    end: it needs the disk space of the tables twice, and no memory.

    Args:
        model: with sharded packed collections.
        path: the file; rank 0 writes it. Its suffix says the format.
        file_format: the format's name, instead of the suffix.

    Raises:
        ArgumentError: the model has no sharded tables, or the format is not known, or has no room for them.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    with gathered(model, Path(path).parent) as tables:
        if tables:
            save(tables, path, format=file_format)


@contextlib.contextmanager
def gathered(model: torch.nn.Module, folder: Path) -> Iterator[dict[str, PackedTable]]:
    """Give rank 0 all tables by name, on disk in ``folder`` while the context lasts; other ranks get none."""
    sharded = [
        (f"{name}.{module.tables_name}.{table}", module, each)
        for name, module in get_unwrapped_module(model).named_modules()
        if isinstance(module, ShardedTables)
        for table, each in getattr(module, module.tables_name).items()
    ]
    if not sharded:
        raise ArgumentError("model", f"a {type(model).__name__} without sharded tables", "one that has some")
    group = sharded[0][2].parts[0].shard.process_group
    first = dist.get_rank(group) == 0
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") if first else contextlib.nullcontext() as name:
        tables = {}
        for number, (title, module, table) in enumerate(sharded):
            words = _gather(table, Path(name) / f"{number}.words" if name else None, group)
            if words is not None:
                tables[title.lstrip(".")] = _table(module, table, words)
        yield tables
    dist.barrier(group)


def _table(module: Any, table: ShardedTable, words: Any) -> PackedTable:
    scales = module.scales
    scale = scales[table.table_name].detach().cpu().numpy() if len(scales) else None
    metadata = {"mode": module.mode_of(table.table_name), "padding_idx": None}
    values = {"bits_per_value": table.bits_per_value, "code": table.code}
    return PackedTable(words, table.embedding_dim, scale=scale, metadata=metadata, **values)


def _gather(table: ShardedTable, path: Path | None, group: Any) -> Any:
    """Send this rank's parts to rank 0, which returns all of the table, mapped from ``path``."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine = [
        (part.shard.first_row, part.num_embeddings, part.shard.first_column // BITS_PER_WORD, part.words.shape[1])
        for part in table.parts
        if part.num_embeddings and not (part.shard.replicated and rank)
    ]
    places: list[Any] = [None] * ranks
    dist.all_gather_object(places, mine, group=group)
    shape = (table.num_embeddings, words_per_row(table.embedding_dim))
    whole = None
    if path is not None:
        whole = np.memmap(path, np.uint32, "w+", shape=shape) if shape[0] else np.empty(shape, np.uint32)
    for owner, parts in enumerate(places):
        for number, (row, rows, word, words) in enumerate(parts):
            step = max(1, PIECE // (4 * words))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                piece = None
                if owner == rank:
                    source = [part for part in table.parts if part.num_embeddings][number].words
                    piece = source[start:stop].contiguous()
                if owner != 0:
                    piece = _passed(piece, (stop - start, words), owner, rank, group, table.parts[0].words.device)
                if whole is not None and piece is not None:
                    whole[row + start : row + stop, word : word + words] = piece.cpu().numpy().view(np.uint32)
    return whole


def _passed(
    piece: torch.Tensor | None, shape: tuple[int, int], owner: int, rank: int, group: Any, device: torch.device
) -> torch.Tensor | None:
    """Pass a piece from its owner to rank 0."""
    if rank == owner:
        assert piece is not None
        dist.send(piece, group_dst=0, group=group)
        return None
    if rank != 0:
        return None
    received = torch.empty(shape, dtype=torch.int32, device=device)
    dist.recv(received, group_src=owner, group=group)
    return received
