"""Ranks that train by what the planner says: what they hold and send is what it counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner.types import ParameterConstraints, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from packedbag.adapters.torchrec import PackedEmbeddingBagCollection, PackedEmbeddingBagCollectionSharder
from packedbag.adapters.torchrec.estimates import packed_planner
from packedbag.core.footprint import count_bits, traffic
from packedbag.optim import CounterSGD, packed_parameters

#: Ids of every bag, which the planner is told.
LENGTH, SAMPLES = 5, 6
TYPES = ("any", "table_wise", "row_wise", "column_wise", "data_parallel", "table_row_wise", "table_column_wise")


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Return a check for each type of sharding, and one where the planner may choose."""
    return {kind: partial(trains_as_planned, kind, rank, world) for kind in TYPES}


def tables() -> list[EmbeddingBagConfig]:
    """Return tables whose columns split unevenly, fill no word, and have two features."""
    return [
        EmbeddingBagConfig(num_embeddings=101, embedding_dim=200, name="wide", feature_names=["a"]),
        EmbeddingBagConfig(
            num_embeddings=40, embedding_dim=64, name="narrow", feature_names=["b", "c"], pooling=PoolingType.MEAN
        ),
    ]


def trains_as_planned(kind: str, rank: int, world: int) -> None:
    constraints = {
        each.name: ParameterConstraints(
            sharding_types=None if kind == "any" else [kind],
            min_partition=64,
            pooling_factors=[float(LENGTH)] * len(each.feature_names),
        )
        for each in tables()
    }
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    topology = Topology(world, "cpu", local_world_size=local)
    planner = packed_planner(topology, bits=4, batch_size=SAMPLES, constraints=constraints)
    model = torch.nn.ModuleDict({"tables": PackedEmbeddingBagCollection(tables(), device="meta", seed=1)})
    sharders = [PackedEmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    for table, sharding in plan.plan["tables"].items():
        assert kind in ("any", sharding.sharding_type), table
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=plan,
        sharders=sharders,
    ).module["tables"]
    optimizer = CounterSGD(packed_parameters(sharded), 0.1, bits=4, seed=2)
    values = torch.arange(3 * SAMPLES * LENGTH) % 40
    lengths = torch.full((3 * SAMPLES,), LENGTH, dtype=torch.int32)
    sharded(KeyedJaggedTensor(["a", "b", "c"], values, lengths=lengths)).values().sum().backward()
    optimizer.step()
    held = sum(part.words.nbytes for table in sharded.embedding_bags.values() for part in table.parts)
    for state in optimizer.state.values():
        held += sum(state[name].nbytes for name in ("planes", "row_state") if name in state)
    sent = sum(codec.forward.bytes for codecs in sharded._codecs for codec in codecs.registry.values())
    if rank:
        return  # the planner's options are on rank 0
    expected = {"held": 0, "sent": 0, "buffers": 0, "storage": 0}
    for option in planner._best_plan:
        features = len(option.input_lengths)
        for shard in option.shards:
            if shard.rank == 0:
                counted = counted_by(option, shard, features, world)
                expected = {name: expected[name] + counted[name] for name in expected}
    assert held == expected["held"]
    assert expected["storage"] == expected["held"] + expected["buffers"]
    # One rank sends nothing; by rows inside of hosts, bags travel twice.
    twice = local < world and any(option.sharding_type == "table_row_wise" for option in planner._best_plan)
    if world > 1 and not twice:
        assert sent == expected["sent"]


def counted_by(option: Any, shard: Any, features: int, world: int) -> dict[str, int]:
    """Return what a shard takes by the formulas, written out."""
    rows, columns = shard.size
    words = 4 * -(-columns // 32)
    bags = world * SAMPLES * features
    ids = bags * LENGTH * rows / option.tensor.shape[0]
    passes = traffic(columns=columns, bags=bags, entries=ids, index=4, bits=count_bits(LENGTH))
    replicated = option.sharding_type == "data_parallel"
    sent = 0 if replicated else passes.forward
    buffers = passes.indices + sent + passes.gradients
    if columns < option.tensor.shape[1]:
        touched = round(rows * (1 - (1 - 1 / rows) ** ids))
        repeated = touched - round(ids * (1 - 1 / rows) ** (ids - 1))
        buffers += min(touched, bags + repeated) * 4 * 33 + touched * 4
    return {
        "held": rows * (4 * words + (4 if shard.offset[1] == 0 else 0)),
        "sent": sent,
        "buffers": buffers,
        "storage": shard.storage.ddr,
    }
