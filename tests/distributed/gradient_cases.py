"""Gradients of values between ranks: one number for each value travels, and trains what one process does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner.types import ParameterConstraints, Topology

from packedbag.adapters.torchrec import PackedEmbeddingBagCollectionSharder, packed_planner
from packedbag.optim import CounterSGD, packed_parameters
from tests.distributed import sequence_cases as sequences
from tests.distributed.collections import (
    KINDS,
    Batch,
    assert_same_tables,
    assert_shares,
    by_key,
    packed,
    plan_of,
    sharded,
    tables,
    tables_of,
    undivided,
)

#: How values are read, and the bits of a counter's column.
VALUES = {
    "thermometer": ({"bits_per_value": 4}, 8),
    "binary": ({"bits_per_value": 4, "code": "binary"}, 2),
}
#: By what TorchRec's backward, and that of replicated tables, hand gradients to others.
COLLECTIVES = ("all_to_all_single", "all_gather_into_tensor", "all_gather")


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Return the checks by name."""
    per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    found: dict[str, Callable[[], None]] = {}
    for kind in KINDS:
        found[f"{kind}: bags"] = partial(sends_a_number_a_value, kind, rank, world, per_node, weighted=False)
        if kind not in ("data", "mixed"):  # replicated tables send the weights in backward, too
            found[f"{kind}: weighted bags"] = partial(
                sends_a_number_a_value, kind, rank, world, per_node, weighted=True
            )
        for name in VALUES:
            found[f"{kind}: bf16, {name}"] = partial(trains_by_halves, kind, name, rank, world, per_node)
            found[f"{kind}: weighted, {name}"] = partial(trains_weighted, kind, name, rank, world, per_node)
    found["estimates"] = plans_for_them
    for kind in sequences.KINDS:
        found[f"{kind}: sequences"] = partial(sends_a_number_a_value_of_rows, kind, rank, world)
    return found


class Sent:
    """How many floating-point numbers this rank has handed to collectives."""

    def __init__(self) -> None:
        self.numbers = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is sent inside."""
        with contextlib.ExitStack() as stack:
            for name in COLLECTIVES:
                stack.enter_context(
                    mock.patch.object(dist, name, side_effect=partial(self._count, getattr(dist, name)))
                )
            yield

    def _count(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = kwargs["input"] if "input" in kwargs else args[1]
        self.numbers += given.numel() if given.is_floating_point() else 0
        return real(*args, **kwargs)


def sends_a_number_a_value(kind: str, rank: int, world: int, per_node: int, *, weighted: bool) -> None:
    """A bag's gradient is as many numbers as its result has columns."""
    batch, sent = Batch(1, [4] * world, weighted=weighted), {}
    for bits in (1, 4):
        options = {"majority": (), "is_weighted": weighted, "bits_per_value": bits}
        many = sharded(plan_of(kind, world, per_node), world, per_node, packed("meta", **options))
        found, counter = many(batch.features(rank)), Sent()
        with counter.counting():
            found.sum().backward()
        sent[bits] = counter.numbers
    if kind not in ("table_row", "mixed"):  # by table and row, gradients travel twice
        assert sent[1] == 4 * (2 * 128 + 100 + 64)
    assert sent[1] == 4 * sent[4]


def sends_a_number_a_value_of_rows(kind: str, rank: int, world: int) -> None:
    """A row's gradient is as many numbers as it has values."""
    dim = sequences.dim_of(kind, world)
    batch, sent = sequences.Batch(1, [4] * world, dim), {}
    for bits in (1, 4):
        _, many = sequences.both(kind, world, bits_per_value=bits)
        found, counter = many(batch.features(rank)), Sent()
        with counter.counting():
            torch.cat([found[name].values() for name in sorted(found)]).sum().backward()
        sent[bits] = counter.numbers
    if kind not in ("data", "mixed"):  # replicas send as many as the rank that has most
        assert sent[1] == sum(len(found[name].values()) for name in found) * dim
    assert sent[1] == 4 * sent[4]


def plans_for_them() -> None:
    """The planner's estimates of a batch's buffers know how many numbers come back."""
    storage = []
    for bits in (1, 4):
        constraints = {
            each.name: ParameterConstraints(sharding_types=["table_wise"], pooling_factors=[3.0] * each.num_features())
            for each in tables()
        }
        planner = packed_planner(Topology(2, "cpu"), batch_size=8, constraints=constraints)
        planner.plan(packed("meta", majority=(), bits_per_value=bits), [PackedEmbeddingBagCollectionSharder()])
        storage.append({option.name: option.shards[0].storage.ddr for option in planner._best_plan})
    for each in tables():
        bags = 2 * 8 * each.num_features()
        saved = bags * each.embedding_dim * 4 - bags * each.embedding_dim // 4 * 4
        assert storage[0][each.name] - storage[1][each.name] == saved, each.name


def trains_by_halves(kind: str, name: str, rank: int, world: int, per_node: int) -> None:
    """What bfloat16 holds of a value's gradient arrives whole, so that the bits are those of one process."""
    options, bits = VALUES[name]
    config = QCommsConfig(forward_precision=CommType.FP32, backward_precision=CommType.BF16)
    sharder = PackedEmbeddingBagCollectionSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config))
    batch = Batch(5, [4] * world, 1)
    # The lowest column of a binary number has a 15th of its value's gradient, or a third.
    whole = 1 if "code" not in options else 2 ** options["bits_per_value"] - 1
    batch.grad = batch.grad.bfloat16().float() * whole
    trains(kind, batch, {**options, "majority": ()}, bits, rank, world, per_node, sharder)


def trains_weighted(kind: str, name: str, rank: int, world: int, per_node: int) -> None:
    """Values of weighted bags are sums in another order where rows are split; the bits are those of one process."""
    options, bits = VALUES[name]
    batch = Batch(3, [4] * world, weighted=True)
    given = {**options, "majority": (), "is_weighted": True}
    trains(kind, batch, given, bits, rank, world, per_node, tolerance=4e-6 * 4)


def trains(
    kind: str,
    batch: Batch,
    options: dict[str, Any],
    bits: int,
    rank: int,
    world: int,
    per_node: int,
    sharder: Any = None,
    tolerance: float = 0.0,
) -> None:
    """Take a step of one process and of all ranks; fail unless both have the same tables."""
    single = packed(**options)
    many = sharded(plan_of(kind, world, per_node), world, per_node, packed("meta", **options), sharder)
    ours, theirs = (CounterSGD(packed_parameters(model), bits=bits, lr=0.3, seed=9) for model in (single, many))
    expected, found = by_key(single(batch.features(None))), many(batch.features(rank))
    mine = batch.samples(rank)
    torch.testing.assert_close(found, expected[mine], rtol=0, atol=tolerance)
    grad = batch.grad[:, : found.shape[1]]
    with undivided():
        expected.backward(grad)
        found.backward(grad[mine])
    for table, part in tables_of(many).embedding_bags.items():
        assert_shares(single.embedding_bags[table], part)
    ours.step()
    theirs.step()
    assert_same_tables(single, many, ours, theirs)
