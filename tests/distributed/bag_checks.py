"""Pooled collections on several ranks against one process: values, and training to the bit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.sharding_plan import column_wise, table_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from packedbag.adapters.torchrec import PackedEmbeddingBagCollection, PackedEmbeddingBagCollectionSharder
from packedbag.core.errors import ArgumentError, GradientError
from packedbag.optim import BitFlip, CounterSGD, VoteFlip, packed_parameters
from tests.distributed import device_cases
from tests.distributed.collections import (
    KINDS,
    Batch,
    assert_same_tables,
    assert_shares,
    by_key,
    packed,
    plan_of,
    sharded,
    slices_of,
    tables,
    tables_of,
    undivided,
)

OPTIMIZERS = {
    "8 bits": partial(CounterSGD, bits=8),
    "2 bits": partial(CounterSGD, bits=2, decay=0.3),
    "flips": partial(BitFlip, lr=0.2),
    "votes": partial(VoteFlip, lr=0.5, bits=3),
    "plain": partial(CounterSGD, bits=4, adaptivity=None),
}
#: How the bits of values are read, and what trains them.
VALUES = {
    "values": ({"bits_per_value": 4}, CounterSGD),
    "numbers": ({"bits_per_value": 4, "code": "binary"}, partial(CounterSGD, bits=2)),
    "short numbers": ({"bits_per_value": 2, "code": "binary"}, partial(CounterSGD, bits=4, lr=0.3)),
}


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    found: dict[str, Callable[[], None]] = {}
    for kind in KINDS:
        for number, name in enumerate(OPTIMIZERS):
            found[f"{kind}: {name}"] = partial(trains, kind, name, 17 * number, rank, world, per_node)
        found[f"{kind}: float weights"] = partial(equals_torchrec, kind, rank, world, per_node)
        found[f"{kind}: long bags"] = partial(sends_long_bags, kind, rank, world, per_node)
        found[f"{kind}: weighted"] = partial(trains_weighted, kind, rank, world, per_node)
        found[f"{kind}: bf16"] = partial(sends_bf16, kind, rank, world, per_node)
        for name in VALUES if kind == "column" else ("values", "numbers"):
            found[f"{kind}: {name}"] = partial(trains_values, kind, name, rank, world, per_node)
        found[f"{kind}: frozen"] = partial(trains_beside_frozen, kind, rank, world, per_node)
        found[f"{kind}: pipeline"] = partial(trains_in_a_pipeline, kind, rank, world, per_node)
        found[f"{kind}: no gradients"] = partial(infers, kind, rank, world, per_node)
    found["a bad gradient"] = partial(refuses_a_bad_gradient, rank, world, per_node)
    found["words split"] = partial(refuses_split_words, world, per_node)
    found["numbers split"] = partial(refuses_split_numbers, world, per_node)
    found["scales"] = partial(trains_scales, rank, world, per_node)
    found["turns"] = partial(device_cases.trains_in_turns, rank, world, per_node)
    return found


def trains(kind: str, name: str, seed: int, rank: int, world: int, per_node: int) -> None:
    """Every plan leaves the bits, confidences, row states and typical statistics that one process has."""
    single, many = packed(), sharded(plan_of(kind, world, per_node), world, per_node, packed("meta"))
    make = OPTIMIZERS[name]
    # A batch that ranks do not share evenly, where the plan allows it over gloo.
    uneven = seed % 2 and kind not in ("row", "table_row", "mixed")
    sizes = [2 + 3 * r for r in range(world)] if uneven else [5] * world
    ours, theirs = (make(packed_parameters(model), seed=9) for model in (single, many))
    for step in range(4):
        batch = Batch(seed + step, sizes)
        expected = single(batch.features(None))
        found = many(batch.features(rank))
        assert found.equal(by_key(expected)[batch.samples(rank)])
        # TorchRec divides what comes back by the number of ranks: each has the mean of its own samples.
        (by_key(expected) * batch.grad.div(world)).sum().backward()
        (found * batch.grad[batch.samples(rank)]).sum().backward()
        for table, part in tables_of(many).embedding_bags.items():
            assert_shares(single.embedding_bags[table], part)
        ours.step()
        theirs.step()
    assert_same_tables(single, many, ours, theirs)


def equals_torchrec(kind: str, rank: int, world: int, per_node: int) -> None:
    """Values are those of TorchRec's own collection, sharded alike, with the same +-1 weights in float32."""
    source = packed(majority=())
    floats = EmbeddingBagCollection(tables=tables())
    with torch.no_grad():
        for name, bag in floats.embedding_bags.items():
            bag.weight.copy_(source.embedding_bags[name].to_bool().float() * 2 - 1)
    batch = Batch(1, [4] * world)
    expected = floats(batch.features(rank)).to_dict()
    many = sharded(plan_of(kind, world, per_node), world, per_node, source)
    found = tables_of(many)(batch.features(rank)).to_dict()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-5, atol=1e-5)
    if kind != "column":  # FBGEMM has no float tables of 36 columns
        weights = {f"tables.{key}": value for key, value in floats.state_dict().items()}
        theirs = sharded(plan_of(kind, world, per_node), world, per_node, floats, FloatSharder())
        load(theirs, weights)
        for key, values in tables_of(theirs)(batch.features(rank)).to_dict().items():
            # TorchRec 1.8.0 divides the second table of a shared feature by the bag's length, where plans are by row
            # and another table takes means: not what its unsharded collection does.
            if key != "a@votes" or kind not in ("row", "table_row"):
                torch.testing.assert_close(found[key], values, rtol=1e-5, atol=1e-5)


def load(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Load whole tables into TorchRec's shards of them."""
    state = model.state_dict()
    with torch.no_grad():
        for key, value in state.items():
            if not isinstance(value, ShardedTensor):
                value.copy_(weights[key])
                continue
            for shard in value.local_shards():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.copy_(weights[key][row : row + rows, column : column + columns])


class FloatSharder(EmbeddingBagCollectionSharder):
    """TorchRec's, with the plans by row, too, that its own leaves to GPUs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return PackedEmbeddingBagCollectionSharder().sharding_types(compute_device_type)


def sends_long_bags(kind: str, rank: int, world: int, per_node: int) -> None:
    """Counts of bags up to 300 entries need 16 bits, of one entry 1 bit; some ranks have only short bags."""
    single, many = packed(), sharded(plan_of(kind, world, per_node), world, per_node, packed("meta"))
    for longest in (1, 3, 14, 200, 300):
        batch = Batch(longest, [3] * world, longest)
        expected = by_key(single(batch.features(None)))[batch.samples(rank)]
        assert many(batch.features(rank)).equal(expected), longest


def trains_weighted(kind: str, rank: int, world: int, per_node: int) -> None:
    """Weighted bags: values within the bound of a sum in another order, bits equal."""
    options = {"is_weighted": True, "majority": ()}
    single, many = (
        packed(**options),
        sharded(plan_of(kind, world, per_node), world, per_node, packed("meta", **options)),
    )
    ours, theirs = (CounterSGD(packed_parameters(model), seed=9) for model in (single, many))
    for step in range(3):
        batch = Batch(step, [4] * world, weighted=True)
        expected, found = single(batch.features(None)), many(batch.features(rank))
        torch.testing.assert_close(found, by_key(expected)[batch.samples(rank)], rtol=0, atol=4e-6 * 4)
        (by_key(expected) * batch.grad.div(world)).sum().backward()
        (found * batch.grad[batch.samples(rank)]).sum().backward()
        ours.step()
        theirs.step()
    assert_same_tables(single, many, ours, theirs)


def sends_bf16(kind: str, rank: int, world: int, per_node: int) -> None:
    """Gradients of eight significant bits arrive whole in bfloat16, so that even then the bits are equal."""
    config = QCommsConfig(forward_precision=CommType.FP32, backward_precision=CommType.BF16)
    sharder = PackedEmbeddingBagCollectionSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config))
    single, many = packed(), sharded(plan_of(kind, world, per_node), world, per_node, packed("meta"), sharder)
    ours, theirs = (CounterSGD(packed_parameters(model), seed=9) for model in (single, many))
    batch = Batch(5, [4] * world, 1)
    grad = batch.grad.bfloat16().float()
    (by_key(single(batch.features(None))) * grad.div(world)).sum().backward()
    (many(batch.features(rank)) * grad[batch.samples(rank)]).sum().backward()
    ours.step()
    theirs.step()
    assert_same_tables(single, many, ours, theirs)


def infers(kind: str, rank: int, world: int, per_node: int) -> None:
    """Without gradients nothing waits in sinks, and an index outside its table is named with its feature."""
    many = sharded(plan_of(kind, world, per_node), world, per_node, packed("meta"))
    batch = Batch(2, [3] * world)
    with torch.no_grad():
        many(batch.features(rank))
    assert all(not part.sink.parts for table in tables_of(many).embedding_bags.values() for part in table.parts)
    batch.bags["b"] = [torch.full_like(bag, 50) for bag in batch.bags["b"]]
    if any(len(bag) for bag in batch.bags["b"][batch.samples(rank)]):
        with pytest.raises(IndexError, match=r"feature 'b': indices\[0\] is 50; the table has rows 0\.\.49"):
            many(batch.features(rank))


def refuses_a_bad_gradient(rank: int, world: int, per_node: int) -> None:
    """One rank's infinite gradient makes all ranks raise, and changes no bit on any."""
    many = sharded(plan_of("table", world, per_node), world, per_node, packed("meta"))
    optimizer = CounterSGD(packed_parameters(many), seed=1)
    batch = Batch(3, [3] * world, 3)
    found = many(batch.features(rank))
    grad = torch.ones_like(found)
    if rank == world - 1:
        grad[0, 0] = torch.inf
    before = [parameter.words.clone() for parameter in parts_of(many)]
    found.backward(grad)
    with pytest.raises(GradientError):
        optimizer.step()
    assert all(part.words.equal(old) for part, old in zip(parts_of(many), before, strict=True))


def parts_of(many: Any) -> list[Any]:
    return [part for table in tables_of(many).embedding_bags.values() for part in table.parts]


def refuses_split_words(world: int, per_node: int) -> None:
    """Columns are split between words, and a rank has one part of them."""
    if world == 1:
        return
    for where, message in (
        ({"size_per_rank": [48, 80]}, "splitting columns at 0 and 48"),
        ({"ranks": [1, 1]}, "on ranks [1, 1]"),
    ):
        plans = {**plan_of("table", world, per_node), "sums": column_wise(**where)}
        with pytest.raises(ArgumentError, match=re.escape(message)):
            sharded(plans, world, per_node, packed("meta"))


def refuses_split_numbers(world: int, per_node: int) -> None:
    """Parts begin at multiples of 8 counters, which decides before a rank is told anything."""
    if world == 1:
        return
    numbers = {"bits_per_value": 8, "code": "binary"}
    tables = [
        EmbeddingBagConfig(num_embeddings=9, embedding_dim=dim, name=name, feature_names=["a"])
        for name, dim in (("whole", 64), ("split", 128))
    ]
    plans = {"whole": table_wise(rank=0), "split": column_wise(size_per_rank=[32, 96])}
    message = (
        "the plan of table 'split' is splitting columns at 0 and 32; "
        "it must be at multiples of 64, with code='binary' and bits_per_value=8. Pass TorchRec's column_wise a size"
    )
    meta = PackedEmbeddingBagCollection(tables, device="meta", seed=1, **numbers)
    silent = mock.patch.object(dist, "broadcast", side_effect=AssertionError("a rank was told something"))
    with silent, pytest.raises(ArgumentError, match=re.escape(message)):
        sharded(plans, world, per_node, meta)
    sharded({**plans, "split": column_wise(size_per_rank=[64, 64])}, world, per_node, meta)


def trains_values(kind: str, name: str, rank: int, world: int, per_node: int) -> None:
    """Values of several bits: one counter drives all of a binary number; those of a thermometer rest apart."""
    options, make = VALUES[name]
    single = packed(majority=(), **options)
    many = sharded(plan_of(kind, world, per_node), world, per_node, packed("meta", majority=(), **options))
    ours, theirs = (make(packed_parameters(model), seed=9) for model in (single, many))
    for step in range(2):
        batch = Batch(step, [4] * world)
        expected, found = by_key(single(batch.features(None))), many(batch.features(rank))
        assert found.equal(expected[batch.samples(rank)])
        grad = batch.grad[:, : found.shape[1]]
        with undivided():
            (expected * grad).sum().backward()
            (found * grad[batch.samples(rank)]).sum().backward()
        for table, part in tables_of(many).embedding_bags.items():
            assert_shares(single.embedding_bags[table], part)
        ours.step()
        theirs.step()
    assert_same_tables(single, many, ours, theirs)


def trains_beside_frozen(kind: str, rank: int, world: int, per_node: int) -> None:
    """Frozen tables stay as they are, and a rank that has no others takes part in backward."""
    single, many = packed(), sharded(plan_of(kind, world, per_node), world, per_node, packed("meta"))
    for model in (single, tables_of(many)):
        for name in ("means", "votes"):
            for parameter in model.embedding_bags[name].parameters():
                parameter.requires_grad_(False)
    ours, theirs = (CounterSGD(packed_parameters(model), seed=9) for model in (single, many))
    batch = Batch(6, [4] * world)
    (by_key(single(batch.features(None))) * batch.grad.div(world)).sum().backward()
    (many(batch.features(rank)) * batch.grad[batch.samples(rank)]).sum().backward()
    ours.step()
    theirs.step()
    for name, table in tables_of(many).embedding_bags.items():
        whole, first = single.embedding_bags[name], packed().embedding_bags[name]
        assert whole.words.equal(first.words) == (name != "sums")
        for part in table.parts:
            assert part.words.equal(whole.words[slices_of(part)]), name


class Clicks(torch.nn.Module):
    """A model as TorchRec's train pipelines take it: of a batch of features, it returns the loss and what it is of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tables = model

    def forward(self, features: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and the columns it is of."""
        found = self.tables(features).values()
        return found.square().mean(), found


def trains_in_a_pipeline(kind: str, rank: int, world: int, per_node: int) -> None:
    """TorchRec's pipeline, which sends the next batch's indices while this one is trained on, changes no bit."""
    batches = [Batch(step, [4] * world) for step in range(4)]
    models = [sharded(plan_of(kind, world, per_node), world, per_node, packed("meta")) for _ in range(2)]
    plain, piped = models
    optimizers = [CounterSGD(packed_parameters(model), seed=9) for model in models]
    for batch in batches:
        optimizers[0].zero_grad()
        plain(batch.features(rank)).square().mean().backward()
        optimizers[0].step()
    model = Clicks(tables_of(piped))
    pipeline = TrainPipelineSparseDist(model, optimizers[1], torch.device("cpu"), execute_all_batches=True)
    waiting = iter([batch.features(rank) for batch in batches])
    for _ in batches:
        pipeline.progress(waiting)
    with pytest.raises(StopIteration):
        pipeline.progress(waiting)
    for mine, theirs in zip(parts_of(piped), parts_of(plain), strict=True):
        assert mine.words.equal(theirs.words)


def trains_scales(rank: int, world: int, per_node: int) -> None:
    """Scales are dense: DDP takes the mean of their gradients; bits get theirs times the scale."""
    single, many = (
        packed(scale="table"),
        sharded(plan_of("mixed", world, per_node), world, per_node, packed(scale="table")),
    )
    for model in (single, tables_of(many)):
        with torch.no_grad():
            for number, scale in enumerate(model.scales.values()):
                scale.fill_(0.5 + number)
    ours, theirs = (CounterSGD(packed_parameters(model), seed=9) for model in (single, many))
    batch = Batch(4, [3] * world)
    expected, found = by_key(single(batch.features(None))), many(batch.features(rank))
    assert found.equal(expected[batch.samples(rank)])
    (expected * batch.grad.div(world)).sum().backward()
    (found * batch.grad[batch.samples(rank)]).sum().backward()
    for name, scale in tables_of(many).scales.items():
        torch.testing.assert_close(scale.grad, single.scales[name].grad, rtol=1e-4, atol=1e-4)
    if world in (1, 2, 4):  # a product with the scale and a third do not commute
        ours.step()
        theirs.step()
        assert_same_tables(single, many, ours, theirs)
