"""Checkpoints of sharded runs: saved by N ranks with one plan, loaded by M ranks with another, to the same bits.

A checkpoint is a folder. `torch.distributed.checkpoint` writes what is sharded, every rank its pieces; rank 0 writes
the rest to ``whole.pt``. It is made beside its place and renamed when all is on disk: a folder of that name is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from packedbag.adapters.torchrec.pieces import Piece, TablePieces
from packedbag.core.errors import CheckpointError, StateMismatchError
from packedbag.core.layout import BITS_PER_WORD, words_per_row
from packedbag.core.totals import FIELDS, FLIPS, FOLDS, ROWS, STEP_BITS, STEP_ROWS, TYPICAL
from packedbag.ops.sink import sink_of
from packedbag.optim.base import PackedOptimizer
from packedbag.optim.deferred_steps import sink_of_anchor
from packedbag.optim.shard_steps import TableShards, shard_of

VERSION = 1
WHOLE = "whole.pt"
#: Behind the name of a folder that is being written.
UNFINISHED = ".unfinished"
#: Behind the name of the one before, while the new one takes its place.
OLD = ".old"
#: What a checkpoint that does not say so has: it is older than the choice.
BEFORE = {"code": "thermometer"}


def find_checkpoint(path: str | os.PathLike[str]) -> Path | None:
    """Return where the whole checkpoint of that name is, or None; beside it where a save was killed while renaming."""
    target = Path(path)
    return next((each for each in (target, _old(target)) if (each / WHOLE).exists()), None)


def _old(target: Path) -> Path:
    return target.with_name(target.name + OLD)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    tables: PackedOptimizer,
    *,
    dense: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; all ranks must call. Gradients that wait for a step are not in it.

    Args:
        path: the folder, on a file system that all ranks see; an older checkpoint there is replaced by a whole one.
        model: with sharded packed collections, as `DistributedModelParallel` returns it.
        tables: its packed optimizer.
        dense: the optimizer of everything else, the same on all ranks.
        extra: what else to keep, the same on all ranks: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        CheckpointError: it cannot be written; an older one is still there.
    """
    target, group = Path(path), _group(tables)
    unfinished = target.with_name(target.name + UNFINISHED)
    first = dist.get_rank(group) == 0
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier(group)
    whole = _whole(model, tables, dense, extra)
    try:
        dcp.save(_sharded(model, tables), checkpoint_id=unfinished, process_group=group)
        if first:
            with (unfinished / WHOLE).open("wb") as file:
                torch.save(whole, file)
                file.flush()
                os.fsync(file.fileno())
            old = _old(target)
            if target.exists():  # else the one before may be `old`, of a save that was killed
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            unfinished.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, dcp.api.CheckpointException) as error:
        before = find_checkpoint(target) is not None
        advice = "The checkpoint before it is whole." if before else "Make room, or pass another folder."
        raise CheckpointError(target, f"the checkpoint could not be written ({_cause(error)})", advice) from error
    dist.barrier(group)


def load_checkpoint(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    tables: PackedOptimizer,
    *,
    dense: torch.optim.Optimizer | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Take over a checkpoint, whatever number of ranks and plan it was made with; all ranks must call.

    Args:
        path, model, tables, dense: as `save_checkpoint` takes them.
        check: called with ``extra`` before anything changes; may raise.

    Returns:
        What was saved as ``extra``.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
        StateMismatchError: it is of other tables or of another optimizer; says which, and nothing has changed.
    """
    target, group = find_checkpoint(path) or Path(path), _group(tables)
    try:
        whole = torch.load(target / WHOLE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(target, "there is no whole checkpoint", "Start from the beginning.") from None
    except Exception as error:  # whatever torch makes of a damaged file
        raise CheckpointError(target, f"the checkpoint is damaged ({error})", "Start from another one.") from error
    if whole.get("version") != VERSION:
        raise CheckpointError(target, f"the checkpoint has version {whole.get('version')}, not {VERSION}", "")
    if check is not None:
        check(whole["extra"])
    _check(whole, tables)
    for group_options, saved in zip(tables.param_groups, whole["groups"], strict=True):
        group_options.update(saved)
    state = _sharded(model, tables)
    try:
        dcp.load(state, checkpoint_id=target, process_group=group)
    except (OSError, dcp.api.CheckpointException) as error:
        advice = "Tables may be loaded in part: load another one, or start from the beginning."
        raise CheckpointError(target, f"the checkpoint is damaged ({_cause(error)})", advice) from error
    _give_totals(whole, tables)
    model.load_state_dict(whole["model"], strict=False)
    if dense is not None:
        dense.load_state_dict(whole["dense"])
    extra: dict[str, Any] = whole["extra"]
    return extra


def _cause(error: BaseException) -> str:
    """Return in a line what went wrong, on which rank."""
    failures = getattr(error, "failures", None)
    if not failures:
        return str(error)
    rank, (first, *_) = next(iter(failures.items()))
    return f"rank {rank}: {first}".splitlines()[0]


# What is sharded -----------------------------------------------------------------------------------------------------


def _sharded(model: torch.nn.Module, tables: PackedOptimizer) -> dict[str, Any]:
    """Return words, planes and row words as pieces, by the tables' names."""
    state: dict[str, Any] = {}
    for table in tables._by_table():
        name = _name(table)
        pieces: dict[str, list[Piece]] = {}
        shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for anchor, group in table.members:
            source = sink_of(anchor).source  # type: ignore[union-attr]
            shard = shard_of(anchor)
            first = (shard.first_row, shard.first_column // BITS_PER_WORD)
            width = (shard.num_embeddings, words_per_row(shard.embedding_dim))
            held = {"weight": source.words}
            held.update(tables._state_of(anchor, source.words, group))
            for key, value in held.items():
                if not isinstance(value, torch.Tensor) or key == "totals":
                    continue
                shape = (*width, *value.shape[2:]) if value.ndim > 1 else width[:1]
                shapes[key] = (torch.Size(shape), value.dtype)
                offsets = (*first, *(0,) * (value.ndim - 2)) if value.ndim > 1 else first[:1]
                if source.num_embeddings:
                    pieces.setdefault(key, []).append(Piece(offsets, value))
        for key, (shape, dtype) in shapes.items():
            state[f"{name}.{key}"] = TablePieces(shape, dtype, pieces.get(key, ()))
    return state


# The rest -------------------------------------------------------------------------------------------------------------


def _whole(
    model: torch.nn.Module, tables: PackedOptimizer, dense: torch.optim.Optimizer | None, extra: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what is the same on all ranks."""
    plain = {key: value for key, value in model.state_dict().items() if not isinstance(value, TablePieces)}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in tables.param_groups]
    return {
        "version": VERSION,
        "model": plain,
        "groups": groups,
        "tables": {_name(table): _outline(table, tables) for table in tables._by_table()},
        "totals": _summed_totals(tables),
        "dense": None if dense is None else dense.state_dict(),
        "extra": extra or {},
    }


def _outline(table: TableShards, tables: PackedOptimizer) -> dict[str, Any]:
    """Return what a table and its state must have in common with what is loaded."""
    anchor, group = table.members[0]
    source, shard = sink_of_anchor(anchor).source, shard_of(anchor)
    kind: dict[str, Any] = {"code": source.code}
    if source.code == "binary":  # a counter drives all bits of a value
        kind["bits_per_value"] = source.bits_per_value
    options = {name: group[name] for name in tables.state_options}
    return {"num_embeddings": shard.num_embeddings, "embedding_dim": shard.embedding_dim, **kind, **options}


def _check(whole: dict[str, Any], tables: PackedOptimizer) -> None:
    """Raise `StateMismatchError` unless a checkpoint is of these tables and this kind of optimizer."""
    mine = {_name(table): _outline(table, tables) for table in tables._by_table()}
    saved = whole["tables"]
    if list(saved) != list(mine):
        raise StateMismatchError("the checkpoint", f"the tables {', '.join(saved)}", f"{', '.join(mine)} in the model")
    for name, outline in mine.items():
        for key, value in outline.items():
            kept = saved[name].get(key, BEFORE.get(key))
            if kept != value:
                found, wanted = f"{key}={kept!r}", f"{key}={value!r} there"
                raise StateMismatchError(f"table {name!r} of the checkpoint", found, wanted)
    if len(whole["groups"]) != len(tables.param_groups):
        raise StateMismatchError("the checkpoint", f"{len(whole['groups'])} groups", str(len(tables.param_groups)))


def _summed_totals(tables: PackedOptimizer) -> torch.Tensor:
    """Return the totals of each table, (tables, FIELDS) int64: what the ranks' parts add up to."""
    mine = torch.zeros(len(tables._by_table()), FIELDS, dtype=torch.int64)
    agreed = torch.zeros_like(mine)  # what all parts of a table have alike
    first = dist.get_rank(_group(tables)) == 0
    for number, table in enumerate(tables._by_table()):
        for anchor, _ in table.members:
            shard, totals = shard_of(anchor), tables.state.get(anchor, {}).get("totals")
            if totals is None or (shard.replicated and not first):
                continue
            totals = totals.cpu()
            mine[number, FLIPS] += totals[FLIPS]
            if shard.part == 0:
                for field in (ROWS, STEP_ROWS, STEP_BITS):
                    mine[number, field] += totals[field]
            agreed[number, [FOLDS, TYPICAL]] = torch.maximum(agreed[number, [FOLDS, TYPICAL]], totals[[FOLDS, TYPICAL]])
    group, device = _group(tables), next(iter(_parts(tables))).words.device
    mine, agreed = mine.to(device), agreed.to(device)
    dist.all_reduce(mine, group=group)
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=group)
    return (mine + agreed).cpu()


def _give_totals(whole: dict[str, Any], tables: PackedOptimizer) -> None:
    """Give each table's totals to its parts: what is added up to one of them, the typical statistic to all."""
    for number, table in enumerate(tables._by_table()):
        for anchor, group in table.members:
            source, shard = sink_of(anchor).source, shard_of(anchor)  # type: ignore[union-attr]
            totals = tables._state_of(anchor, source.words, group).get("totals")
            if totals is None:
                continue
            totals.copy_(whole["totals"][number])
            if not shard.replicated and (shard.first_row, shard.first_column) != (0, 0):
                for field in (FLIPS, ROWS, STEP_ROWS, STEP_BITS):
                    totals[field] = 0


def _parts(tables: PackedOptimizer) -> Any:
    for anchor, _ in tables._tables():
        yield sink_of(anchor).source  # type: ignore[union-attr]


def _name(table: TableShards) -> str:
    shard = shard_of(table.members[0][0])
    assert shard is not None
    return str(shard.table[-1])  # type: ignore[index]


def _group(tables: PackedOptimizer) -> Any:
    group = tables._shard_group()
    if group is None:
        raise StateMismatchError("the optimizer", "no sharded tables", "those of a DistributedModelParallel")
    return group
