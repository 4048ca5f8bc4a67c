"""Sharded tables on a device that runs behind the host, against one process on the CPU: see `places` for where."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.distributed.sharding import rw_sharding
from torchrec.distributed.sharding_plan import column_wise, row_wise, table_wise
from torchrec.modules.embedding_configs import EmbeddingBagConfig

import packedbag
from packedbag import PackedEmbeddingBag
from packedbag.adapters.torchrec import PackedEmbeddingBagCollection, export, load_checkpoint, save_checkpoint
from packedbag.backends import select
from packedbag.core.errors import GradientError, RankMismatchError
from packedbag.optim import CounterSGD, packed_parameters
from tests.distributed import sequence_cases as sequences
from tests.distributed.collections import (
    KINDS,
    Batch,
    assert_same_parts,
    by_key,
    packed,
    plan_of,
    sharded,
    tables_of,
    undivided,
)
from tests.distributed.places import place

#: Both the row statistic and the typical one are used, and decay moves what no gradient does.
OPTIMIZERS = {bits: partial(CounterSGD, bits=bits, adaptivity="ema", decay=0.1, lr=0.2, seed=9) for bits in (8, 4)}


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Return the checks by name."""
    per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    found: dict[str, Callable[[], None]] = {"device": partial(is_served_there, rank)}
    for number, kind in enumerate(KINDS):
        for bits in OPTIMIZERS:
            # Batches of other sizes on each rank: gloo cannot add up parts of these, NCCL can.
            uneven = (number + bits // 4) % 2 and place().group != "gloo"
            sizes = [2 + 3 * r for r in range(world)] if uneven else [4] * world
            found[f"{kind}: {bits} bits"] = partial(trains, kind, bits, sizes, rank, world, per_node)
    for kind in ("column", "row", "table_row"):
        found[f"{kind}: numbers"] = partial(trains_numbers, kind, rank, world, per_node)
    found["row: weighted"] = partial(trains_weighted, rank, world, per_node)
    found["column: turns"] = partial(trains_in_turns, rank, world, per_node)
    found["table: beside whole"] = partial(trains_beside_whole, rank, world, per_node)
    found["table: infinite"] = partial(refuses_a_bad_gradient, rank, world, per_node)
    found["table: another number"] = partial(refuses_another_number_of_tables, rank, world, per_node)
    found["row: outside"] = partial(names_a_bad_index, rank, world, per_node)
    found["mixed: checkpoint"] = partial(goes_on, folder, rank, world, per_node)
    for kind in ("column", "mixed"):
        found[f"{kind}: sequences"] = partial(looks_up, kind, rank, world)
    return found


def is_served_there(rank: int) -> None:
    """The checks see what they are for: a backend that runs behind the host, outside of the CPU's."""
    where = place().device_of(rank)
    with place().serving():
        assert select(where.type).deferred == (place().device == "cuda" or place().emulated)
    assert not select("cpu").deferred


class Pair:
    """Tables of one process on the CPU, and the same on all ranks, trained alike.

    Args:
        plans: of each table.
        make: the optimizer, of parameters.
        single: the collection of one process.
        meta: the same on the meta device, which is sharded.
    """

    #: How far values may be from each other: only those of weighted bags, which are sums in another order, may at all.
    tolerance = 0.0

    def __init__(self, plans: dict[str, Any], make: Any, per_node: int, world: int, single: Any, meta: Any) -> None:
        self.single, self.world = single, world
        with place().serving():
            self.many = sharded(plans, world, per_node, meta)
            self.theirs = make(packed_parameters(self.many))
        self.ours = make(packed_parameters(single))

    def step(self, batch: Batch, rank: int) -> None:
        """Take a step of both; fail unless a rank's columns are its part of one process's."""
        where = place().device_of(rank)
        expected = by_key(self.single(batch.features(None)))
        grad = batch.grad[:, : expected.shape[1]]
        # Divided where the ranks do it: a GPU divides by a number by multiplying with its inverse.
        expected.backward(grad.to(where).div(self.world if get_gradient_division() else 1).cpu())
        self.ours.step()
        with place().serving():
            found = self.many(batch.features(rank).to(where))
            torch.testing.assert_close(found.cpu(), expected[batch.samples(rank)], rtol=0, atol=self.tolerance)
            found.backward(grad[batch.samples(rank)].to(where))
            self.theirs.step()

    def assert_same_tables(self) -> None:
        """Fail unless words, confidences, row states and typical statistics are those of one process."""
        for name, table in tables_of(self.many).embedding_bags.items():
            whole = self.single.embedding_bags[name]
            assert_same_parts(table, whole.words, self.ours.state[whole.anchor], self.theirs)
        groups = [each.state_dict()["param_groups"][0] for each in (self.ours, self.theirs)]
        assert groups[0]["step"] == groups[1]["step"]


def trains(kind: str, bits: int, sizes: list[int], rank: int, world: int, per_node: int) -> None:
    """Sums, means and majorities, and the bits that training leaves, are those of one process."""
    pair = Pair(plan_of(kind, world, per_node), OPTIMIZERS[bits], per_node, world, packed(), packed("meta"))
    for step in range(3):
        pair.step(Batch(100 * bits + step, sizes), rank)
    for name, table in pair.single.embedding_bags.items():
        assert not packed().embedding_bags[name].words.equal(table.words), "no bit has changed: the check sees nothing"
    pair.assert_same_tables()


def trains_numbers(kind: str, rank: int, world: int, per_node: int) -> None:
    """Values that are binary numbers: one counter drives the four bits of each, one number is its gradient."""
    options = {"bits_per_value": 4, "code": "binary", "majority": ()}
    make, single, meta = partial(CounterSGD, bits=2, seed=9), packed(**options), packed("meta", **options)
    pair = Pair(plan_of(kind, world, per_node), make, per_node, world, single, meta)
    uneven = [2 + 3 * r for r in range(world)] if place().group != "gloo" else [4] * world
    with undivided():  # by 15, and by the number of ranks
        for sizes in ([4] * world, uneven):
            pair.step(Batch(sizes[0], sizes), rank)
    pair.assert_same_tables()


def trains_weighted(rank: int, world: int, per_node: int) -> None:
    """Weighted bags leave the same bits, too: their entries are sent in their order."""
    options = {"is_weighted": True, "majority": ()}
    single, meta = packed(**options), packed("meta", **options)
    pair = Pair(plan_of("row", world, per_node), OPTIMIZERS[8], per_node, world, single, meta)
    pair.tolerance = 2e-5
    given = rw_sharding.bucketize_kjt_before_all2all
    with mock.patch.object(rw_sharding, "bucketize_kjt_before_all2all", side_effect=given) as sent:
        for step in range(2):
            pair.step(Batch(step, [4] * world, 30, weighted=True), rank)
    assert sent.called
    assert all(call.kwargs["output_permute"] for call in sent.call_args_list)  # FBGEMM keeps the order of these alone
    pair.assert_same_tables()


def trains_in_turns(rank: int, world: int, per_node: int) -> None:
    """Ranks that share rows meet in one order, though some of them have none of the tables between."""
    owner = world - 1
    plans = {
        "first": column_wise(ranks=[0, owner]) if world > 1 else table_wise(rank=0),
        "alone": table_wise(rank=0),
        "second": column_wise(ranks=[owner, 0]) if world > 1 else table_wise(rank=0),
        "rows": row_wise(),
        "third": column_wise(ranks=[0, owner]) if world > 1 else table_wise(rank=0),
    }
    configs = [
        EmbeddingBagConfig(num_embeddings=40, embedding_dim=64, name=name, feature_names=["a"]) for name in plans
    ]
    single, meta = (PackedEmbeddingBagCollection(configs, device=where, seed=5) for where in ("cpu", "meta"))
    pair = Pair(plans, OPTIMIZERS[8], per_node, world, single, meta)
    for step in range(2):
        pair.step(Batch(step, [3] * world), rank)
    pair.assert_same_tables()


class Beside(torch.nn.Module):
    """A collection, and a table that every rank holds whole for itself."""

    def __init__(self, collection: Any, device: Any) -> None:
        super().__init__()
        self.tables = collection
        # An entry that is left out stands behind the last row, where a backend runs behind the host.
        self.whole = PackedEmbeddingBag(20, 40, padding_idx=3, device=device)
        self.whole.load_state_dict(PackedEmbeddingBag(20, 40, generator=torch.Generator().manual_seed(0)).state_dict())

    def forward(self, features: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the columns of the collection's features, and the bags of ``ids``."""
        return by_key(self.tables(features)), self.whole(ids)


def trains_beside_whole(rank: int, world: int, per_node: int) -> None:
    """A whole table beside sharded ones is trained by the gradients of all ranks, which all take the same step."""
    where, plans = place().device_of(rank), plan_of("table", world, per_node)
    single = Beside(packed(), "cpu")
    with place().serving():
        model = Beside(packed("meta"), where)
        many = sharded(plans, world, per_node, model.tables, model=model)
        theirs = OPTIMIZERS[8](packed_parameters(many))
    ours = OPTIMIZERS[8](packed_parameters(single))
    draw = torch.Generator().manual_seed(2)
    for step in range(3):
        batch = Batch(step, [3] * world)
        mine, ids = batch.samples(rank), torch.randint(20, (3 * world, 5), generator=draw)
        grad = torch.randn(3 * world, 40, generator=draw)
        columns, bags = single(batch.features(None), ids)
        torch.autograd.backward([columns, bags], [batch.grad.to(where).div(world).cpu(), grad])
        ours.step()
        with place().serving():
            found = many(batch.features(rank).to(where), ids[mine].to(where))
            assert found[1].cpu().equal(bags[mine])
            torch.autograd.backward(found, [batch.grad[mine].to(where), grad[mine].to(where)])
            theirs.step()
    beside = get_unwrapped_module(many).whole
    for kind, expected in ours.state[single.whole.anchor].items():
        if isinstance(expected, torch.Tensor):
            assert theirs.state[beside.anchor][kind].cpu().equal(expected), kind
    assert beside.words.cpu().equal(single.whole.words)
    for name, table in tables_of(many).embedding_bags.items():
        whole = single.tables.embedding_bags[name]
        assert_same_parts(table, whole.words, ours.state[whole.anchor], theirs)


def refuses_a_bad_gradient(rank: int, world: int, per_node: int) -> None:
    """One rank's infinite gradient makes all ranks raise at that step, which changes no bit on any; the next one is."""
    pair = Pair(plan_of("table", world, per_node), OPTIMIZERS[8], per_node, world, packed(), packed("meta"))
    where, batch = place().device_of(rank), Batch(3, [3] * world, 3)
    parts = [part for table in tables_of(pair.many).embedding_bags.values() for part in table.parts]
    before = [part.words.clone() for part in parts]
    with place().serving():
        found = pair.many(batch.features(rank).to(where))
        grad = torch.ones_like(found)
        if rank == world - 1:
            grad[0, 0] = torch.inf
        found.backward(grad)
        with pytest.raises(GradientError, match=r"table \d .*changed"):
            pair.theirs.step()
        pair.theirs.check()  # nothing is left to raise
    assert all(part.words.equal(old) for part, old in zip(parts, before, strict=True))
    pair.theirs.zero_grad()
    pair.step(Batch(4, [3] * world), rank)
    pair.assert_same_tables()


def refuses_another_number_of_tables(rank: int, world: int, per_node: int) -> None:
    """A rank whose optimizer has other tables is found at the first step, and all ranks say so."""
    with place().serving():
        many = sharded(plan_of("table", world, per_node), world, per_node, packed("meta"))
        parameters = packed_parameters(many)
        optimizer = OPTIMIZERS[8](parameters[:1] if rank == world - 1 else parameters)
        if world > 1:
            with pytest.raises(RankMismatchError, match=r"3; .*1 of them"):
                optimizer.step()


def names_a_bad_index(rank: int, world: int, per_node: int) -> None:
    """An index outside its table is raised at once, with its feature, on the rank that has it, before it is sent."""
    pair = Pair(plan_of("row", world, per_node), OPTIMIZERS[8], per_node, world, packed(), packed("meta"))
    batch = Batch(2, [3] * world, 3)
    good = batch.features(rank).to(place().device_of(rank))
    batch.bags["b"] = [torch.full_like(bag, 50) for bag in batch.bags["b"]]
    with place().serving():
        if any(len(bag) for bag in batch.bags["b"][batch.samples(rank)]):
            with pytest.raises(IndexError, match=r"feature 'b': indices\[0\] is 50; the table has rows 0\.\.49"):
                pair.many(batch.features(rank).to(place().device_of(rank)))
        pair.many(good)
        pair.theirs.check()


def goes_on(folder: Path, rank: int, world: int, per_node: int) -> None:
    """A checkpoint is loaded into tables on the device, and training goes on as if it had not been interrupted.

    What it says of a GPU it was saved from is not heeded: each rank has another one, or none.
    """
    plans = plan_of("mixed", world, per_node)
    pair = Pair(plans, OPTIMIZERS[4], per_node, world, packed(), packed("meta"))
    pair.step(Batch(1, [3] * world), rank)
    with place().serving():
        with mock.patch.object(torch.serialization, "location_tag", return_value="cuda:0"):
            save_checkpoint(folder / "checkpoint", pair.many, pair.theirs)
        pair.many = sharded(plans, world, per_node, packed("meta", seed=8))
        pair.theirs = OPTIMIZERS[4](packed_parameters(pair.many))
        load_checkpoint(folder / "checkpoint", pair.many, pair.theirs)
    pair.assert_same_tables()
    export(pair.many, folder / "tables.safetensors")
    stored = packedbag.load(folder / "tables.safetensors", verify=True)
    for name, whole in pair.single.embedding_bags.items():
        assert (stored[f"tables.embedding_bags.{name}"].words == whole.weight.numpy()).all(), name
    pair.step(Batch(2, [3] * world), rank)
    pair.assert_same_tables()


def looks_up(kind: str, rank: int, world: int) -> None:
    """Rows of sequences, and the bits that training leaves, are those of one process."""
    where = place().device_of(rank)
    single = sequences.collection(kind, world)
    with place().serving():
        meta = sequences.collection(kind, world, "meta")
        many = sequences.sharded(sequences.plan_of(kind, world), world, meta)
        theirs = OPTIMIZERS[4](packed_parameters(many))
    ours = OPTIMIZERS[4](packed_parameters(single))
    for step in range(2):
        batch = sequences.Batch(step, [2 + 2 * r for r in range(world)], sequences.dim_of(kind, world))
        expected = single(batch.features(None))
        for name, each in expected.items():
            each.values().backward(batch.grads[name].to(where).div(world).cpu(), retain_graph=True)
        ours.step()
        with place().serving():
            found = many(batch.features(rank).to(where))
            rows = {name: each.values() for name, each in found.items()}
            grads = [batch.grads[name][batch.entries(name, rank)].to(where) for name in sorted(rows)]
            for name, each in rows.items():
                assert each.cpu().equal(expected[name].values()[batch.entries(name, rank)]), name
            torch.autograd.backward([rows[name] for name in sorted(rows)], grads)
            theirs.step()
    for name, table in tables_of(many).embeddings.items():
        whole = single.embeddings[name]
        assert_same_parts(table, whole.words, ours.state[whole.anchor], theirs)
