"""Checkpoints: ranks that save, and ranks of another number and plan that go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec.distributed.comm_ops import set_gradient_division

import packedbag
from packedbag.adapters.torchrec import export, find_checkpoint, load_checkpoint, save_checkpoint
from packedbag.core.errors import CheckpointError, StateMismatchError
from packedbag.optim import CounterSGD, packed_parameters
from tests.distributed.bag_checks import assert_same_tables
from tests.distributed.collections import KINDS, Batch, by_key, packed, plan_of, sharded, tables_of

SAMPLES = 12
SAVED, TRAINED = 3, 5
#: The name of a checkpoint of values that are binary numbers.
NUMBERS = "numbers"


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    set_gradient_division(False)  # the loss is the global batch's, whatever the number of ranks
    per_node, shared = int(os.environ["LOCAL_WORLD_SIZE"]), Path(os.environ["PACKEDBAG_TEST_FOLDER"])
    found: dict[str, Callable[[], None]] = {}
    for number, kind in enumerate(KINDS):
        # What is loaded was saved with another plan.
        others = (KINDS[(number + 1) % len(KINDS)], KINDS[(number + 3) % len(KINDS)])
        if "save" in os.environ["PACKEDBAG_TEST_ROLE"]:
            found[f"{kind}: saves"] = partial(saves, kind, rank, world, per_node, shared)
        else:
            for other in others:
                found[f"{kind}: goes on from {other}"] = partial(goes_on, kind, other, rank, world, per_node, shared)
    if "load" in os.environ["PACKEDBAG_TEST_ROLE"]:
        found["numbers: goes on"] = partial(goes_on, "column", NUMBERS, rank, world, per_node, shared)
    if "save" in os.environ["PACKEDBAG_TEST_ROLE"]:
        for kind in KINDS:
            found[f"{kind}: exports"] = partial(exports, kind, rank, world, per_node, folder)
        found["numbers: saves"] = partial(saves, "column", rank, world, per_node, shared, NUMBERS)
        found["a state dict"] = partial(saves_a_state_dict, rank, world, per_node, folder)
        found["refusals"] = partial(refuses, rank, world, per_node, folder)
    return found


def train(step: int, single: Any, many: Any, rank: int, world: int) -> None:
    batch = Batch(step, [SAMPLES // world] * world)
    if single is not None:
        found = by_key(single(batch.features(None)))
        (found * batch.grad[:, : found.shape[1]]).sum().backward()
    if many is not None:
        found = many(batch.features(rank))
        (found * batch.grad[batch.samples(rank), : found.shape[1]]).sum().backward()


def options_of(name: str) -> dict[str, Any]:
    """Return the options of the collection that a checkpoint of this name is of."""
    numbers = {"bits_per_value": 4, "code": "binary", "majority": ()}
    return {"scale": "table", **(numbers if name == NUMBERS else {})}


def trained_by(name: str, model: Any) -> CounterSGD:
    return CounterSGD(packed_parameters(model), seed=9, bits=2 if name == NUMBERS else 5)


def made(kind: str, world: int, per_node: int, name: str = "") -> tuple[Any, Any, Any]:
    many = sharded(plan_of(kind, world, per_node), world, per_node, packed("meta", **options_of(name)))
    return many, trained_by(name, many), torch.optim.Adam(list(tables_of(many).scales.values()), lr=0.01)


def saves(kind: str, rank: int, world: int, per_node: int, shared: Path, name: str = "") -> None:
    name = name or kind
    many, optimizer, dense = made(kind, world, per_node, name)
    for step in range(SAVED):
        train(step, None, many, rank, world)
        optimizer.step()
        optimizer.zero_grad()
        dense.zero_grad()  # scales stay 1: the mean of their gradients is not the same to the bit
    for _ in range(2):  # the second replaces the first
        save_checkpoint(shared / name, many, optimizer, dense=dense, extra={"epoch": 7, "kind": name})
    assert sorted(each.name for each in shared.iterdir() if name == each.name.split(".")[0]) == [name]


def goes_on(kind: str, other: str, rank: int, world: int, per_node: int, shared: Path) -> None:
    """What was loaded, trained on, equals one process that was never stopped."""
    many, optimizer, dense = made(kind, world, per_node, other)
    tables_of(many).reset_parameters()
    assert load_checkpoint(shared / other, many, optimizer, dense=dense) == {"epoch": 7, "kind": other}
    assert optimizer.param_groups[0]["step"] == SAVED
    single = packed(**options_of(other))
    expected = trained_by(other, single)
    for step in range(TRAINED):
        train(step, single, many if step >= SAVED else None, rank, world)
        expected.step()
        if step >= SAVED:
            optimizer.step()
    assert_same_tables(single, many, expected, optimizer)
    flips = torch.tensor([[f, r] for f, r in optimizer.flip_counts()])
    assert flips.shape[1] == 2


def saves_a_state_dict(rank: int, world: int, per_node: int, folder: Path) -> None:
    """The model's state dict alone goes through DCP, too, into another plan; a whole table is taken apart."""
    many, _, _ = made("row", world, per_node)
    dcp.save({"model": many.state_dict()}, checkpoint_id=folder / "state")
    other = sharded(plan_of("column", world, per_node), world, per_node, packed("meta", scale="table", seed=4))
    state = {"model": other.state_dict()}
    dcp.load(state, checkpoint_id=folder / "state")
    other.load_state_dict(state["model"])
    whole = {f"tables.{key}": value for key, value in packed(scale="table", seed=4).state_dict().items()}
    again = sharded(plan_of("row", world, per_node), world, per_node, packed("meta", scale="table"))
    again.load_state_dict(whole)
    for model, seed in ((other, 3), (again, 4)):
        source = packed(seed=seed)
        for name, table in tables_of(model).embedding_bags.items():
            for part in table.parts:
                first = part.shard.first_column // 32
                rows = slice(part.shard.first_row, part.shard.first_row + part.num_embeddings)
                words = source.embedding_bags[name].words[rows, first : first + part.words.shape[1]]
                assert part.words.equal(words), name
    with pytest.raises(NotImplementedError, match=r"cannot be pickled: save it with .*save_checkpoint"):
        torch.save(many.state_dict(), folder / f"{rank}.pt")
    with pytest.raises(NotImplementedError, match="pieces of a table"):
        many.state_dict()["tables.embedding_bags.sums.weight"].sum()


def exports(kind: str, rank: int, world: int, per_node: int, folder: Path) -> None:
    """A file holds the tables of all ranks, and serves what the model does."""
    many, _, _ = made(kind, world, per_node)
    export(many, folder / f"{kind}.safetensors")
    single = packed(scale="table")
    stored = packedbag.load(folder / f"{kind}.safetensors", verify=True)
    for name, part in single.embedding_bags.items():
        table = stored[f"tables.embedding_bags.{name}"]
        assert (table.words == part.weight.numpy()).all(), name
        assert table.scale == 1, name
        assert table.mode == single.modes[name], name
    assert not list(folder.glob(".export-*"))


def refuses(rank: int, world: int, per_node: int, folder: Path) -> None:
    many, optimizer, _ = made("table", world, per_node)
    with pytest.raises(CheckpointError, match="there is no whole checkpoint"):
        load_checkpoint(folder / "none", many, optimizer)
    dist.barrier()
    if rank == 0:
        (folder / "file").touch()
    dist.barrier()
    with pytest.raises(CheckpointError, match=r"could not be written \(rank 0: [^\n]*\)\. Make room"):
        save_checkpoint(folder / "file" / "inside", many, optimizer)
    save_checkpoint(folder / "some", many, optimizer)
    numbers, of_numbers, _ = made("table", world, per_node, NUMBERS)
    with pytest.raises(StateMismatchError, match=r"table 'sums' of the checkpoint has code='thermometer'; .*'binary'"):
        load_checkpoint(folder / "some", numbers, of_numbers)
    fewer = CounterSGD(packed_parameters(many), seed=9, bits=4)
    with pytest.raises(StateMismatchError, match=r"table 'sums' of the checkpoint has bits=5; .* bits=4"):
        load_checkpoint(folder / "some", many, fewer)
    assert find_checkpoint(folder / "some") == folder / "some"
    dist.barrier()
    if rank == 0:  # a save that is killed between its two renames
        (folder / "some").rename(folder / "some.old")
        (folder / "some.unfinished").mkdir()
    dist.barrier()
    assert find_checkpoint(folder / "some") == folder / "some.old"
    load_checkpoint(folder / "some", many, optimizer)
    save_checkpoint(folder / "some", many, optimizer)
    assert sorted(each.name for each in folder.glob("some*")) == ["some"]
    dist.barrier()
    if rank == 0:
        (folder / "some" / "whole.pt").write_bytes(b"no checkpoint")
    dist.barrier()
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        load_checkpoint(folder / "some", many, optimizer)
