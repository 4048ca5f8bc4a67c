"""Collections of sequences on several ranks against one process: values, and training to the bit."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import packedbag
from packedbag.adapters.torchrec import PackedEmbeddingCollection, PackedEmbeddingCollectionSharder, export
from packedbag.core.errors import ArgumentError
from packedbag.optim import BitFlip, CounterSGD, VoteFlip, packed_parameters
from tests.distributed.collections import assert_same_parts, assert_shares, undivided
from tests.distributed.places import place

#: Rows of the features' tables; the smaller one where there are two.
FEATURES = {"a": 40, "b": 50, "c": 31}
KINDS = ("table", "row", "column", "data", "mixed")
OPTIMIZERS = {
    "8 bits": partial(CounterSGD, bits=8),
    "2 bits": partial(CounterSGD, bits=2, decay=0.3),
    "flips": partial(BitFlip, lr=0.2),
    "votes": partial(VoteFlip, lr=0.5, bits=3),
}
#: The results' names: feature "a" is of two tables.
NAMES = ("a@first", "b", "c", "a@second")
OF_KINDS = {}


def of_kinds(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the check ``name`` of every kind of plan."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        OF_KINDS[name] = function
        return function

    return register


def check(rank: int, world: int) -> dict[str, str]:
    """Run all checks; return "ok" or the traceback of each. After a failure the others' waits would not end."""
    said = {}
    name = "none"
    try:
        for name, function in checks(rank, world, Path()).items():
            function()
            said[name] = "ok"
    except BaseException:
        said[name] = traceback.format_exc()
    return said


def checks(rank: int, world: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Return the checks by name."""
    found: dict[str, Callable[[], None]] = {}
    for kind in KINDS:
        for number, name in enumerate(OPTIMIZERS):
            found[f"{kind}: {name}"] = partial(trains, kind, name, 17 * number, rank, world)
        for name, function in OF_KINDS.items():
            found[f"{kind}: {name}"] = partial(function, kind, rank, world)
    found["widths"] = partial(refuses_two_widths, world)
    found["scales"] = partial(trains_scales, rank, world)
    found["export"] = partial(exports, world, folder)
    return found


def dim_of(kind: str, world: int) -> int:
    """Return D: equal parts of whole words where columns are split, else rows that end inside a byte."""
    return 64 * world if kind == "column" else 100


def collection(kind: str, world: int, device: str = "cpu", **options: Any) -> PackedEmbeddingCollection:
    """Return three tables, one of two features, two of one feature; the same first bits each time."""
    dim = dim_of(kind, world)
    tables = [
        EmbeddingConfig(num_embeddings=50, embedding_dim=dim, name="first", feature_names=["a", "b"]),
        EmbeddingConfig(num_embeddings=31, embedding_dim=dim, name="only", feature_names=["c"]),
        EmbeddingConfig(num_embeddings=40, embedding_dim=dim, name="second", feature_names=["a"]),
    ]
    return PackedEmbeddingCollection(tables, device=device, **{"seed": 3, **options})


def plan_of(kind: str, world: int) -> dict[str, Any]:
    ranks = list(range(world))
    plans = {
        "table": [table_wise(rank=i % world) for i in range(3)],
        "row": [row_wise() for _ in range(3)],
        "column": [column_wise(ranks=ranks), column_wise(ranks=ranks[::-1]), column_wise(ranks=ranks[1:] + ranks[:1])],
        "data": [data_parallel() for _ in range(3)],
        "mixed": [row_wise(), table_wise(rank=world - 1), data_parallel()],
    }
    return dict(zip(("first", "only", "second"), plans[kind], strict=True))


class Tables(torch.nn.Module):
    """A model that is a collection alone."""

    def __init__(self, tables: torch.nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor) -> Any:
        """Return what has arrived: DDP is to see tensors, not what is awaited."""
        return dict(self.tables(features).items())


def sharded(plans: dict[str, Any], world: int, tables: Any, sharder: Any = None) -> Any:
    """Return the collection on all ranks, as ``plans`` says, inside a `DistributedModelParallel`."""
    sharder = sharder or PackedEmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(
        tables, plans, sharder=sharder, local_size=world, world_size=world, device_type=place().device
    )
    return DistributedModelParallel(
        Tables(tables),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=place().device_of(dist.get_rank()),
        plan=ShardingPlan(plan={"tables": plan}),
        sharders=[sharder],
    )


def tables_of(model: Any) -> Any:
    """Return the sharded collection of a model that `sharded` made."""
    wrapped = model.module
    return getattr(wrapped, "module", wrapped).tables  # DDP, where there are scales


def both(kind: str, world: int, sharder: Any = None, **options: Any) -> tuple[Any, Any]:
    """Return the collection of one process, and of all ranks."""
    many = collection(kind, world, "meta", **options)
    return collection(kind, world, **options), sharded(plan_of(kind, world), world, many, sharder)


class Batch:
    """A batch of all ranks: ``sizes`` samples on each, sequences of 0 to 6, on the last ``empty`` ranks of 0.

    Some rows occur so often that a sum in another order is another one. Indices are up to ``1.5 * beyond``
    outside of their tables, at both ends.
    """

    def __init__(self, seed: int, sizes: list[int], dim: int, *, empty: int = 0, beyond: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sizes = sizes
        shape = (len(FEATURES), sum(sizes))
        self.lengths = torch.randint(0, 7, shape, generator=generator, dtype=torch.int32)
        self.lengths[:, sum(sizes[: len(sizes) - empty]) :] = 0
        self.indices, self.grads = {}, {}
        for (name, rows), lengths in zip(FEATURES.items(), self.lengths, strict=True):
            chances = torch.rand(int(lengths.sum()), generator=generator)
            self.indices[name] = (chances**3 * (rows + 2 * beyond)).long() - beyond // 2
        for name in NAMES:
            count = len(self.indices[name[0]])
            #: What the loss hands back for each row.
            self.grads[name] = torch.randn(count, dim, generator=generator)

    def entries(self, name: str, rank: int | None) -> slice:
        """Return which entries of a feature, or of a result, are a rank's; None: all."""
        lengths = self.lengths["abc".index(name[0])]
        if rank is None:
            return slice(0, int(lengths.sum()))
        first = sum(self.sizes[:rank])
        start = int(lengths[:first].sum())
        return slice(start, start + int(lengths[first : first + self.sizes[rank]].sum()))

    def features(self, rank: int | None) -> KeyedJaggedTensor:
        """Return the features of a rank's samples."""
        first = 0 if rank is None else sum(self.sizes[:rank])
        count = sum(self.sizes) if rank is None else self.sizes[rank]
        return KeyedJaggedTensor(
            keys=list(FEATURES),
            values=torch.cat([self.indices[name][self.entries(name, rank)] for name in FEATURES]),
            lengths=self.lengths[:, first : first + count].reshape(-1),
        )

    def assert_same(self, expected: Any, found: Any, rank: int) -> None:
        """Fail unless a rank has found its part of what one process has."""
        first = sum(self.sizes[:rank])
        assert list(found) == list(expected)
        assert sorted(found) == sorted(NAMES)
        for name in NAMES:
            assert found[name].values().equal(expected[name].values()[self.entries(name, rank)]), name
            mine = expected[name].lengths()[first : first + self.sizes[rank]]
            assert found[name].lengths().equal(mine), name

    def backward(self, result: Any, rank: int | None, world: int) -> None:
        """Hand the gradients back: TorchRec divides a rank's by the number of ranks, if it is to."""
        divisor, total = world if get_gradient_division() else 1, 0
        for name in sorted(NAMES):
            grad = self.grads[name][self.entries(name, rank)]
            total = total + (result[name].values() * (grad.div(divisor) if rank is None else grad)).sum()
        total.backward()


def steps(kind: str, world: int, rank: int, pair: tuple[Any, Any], make: Any, batches: list[Batch]) -> None:
    """Train one process and all ranks on the same batches; fail unless both have the same tables."""
    single, many = pair
    ours, theirs = (make(packed_parameters(model), seed=9) for model in pair)
    for batch in batches:
        expected, found = single(batch.features(None)), many(batch.features(rank))
        batch.assert_same(expected, found, rank)
        batch.backward(expected, None, world)
        batch.backward(found, rank, world)
        assert_same_gradients(single, tables_of(many))
        ours.step()
        theirs.step()
    for name, table in tables_of(many).embeddings.items():
        whole = single.embeddings[name]
        unchanged = collection(kind, world).embeddings[name].words
        assert not unchanged.equal(whole.words), "no bit has changed: the check would see nothing"
        assert_same_parts(table, whole.words, ours.state[whole.anchor], theirs)


def assert_same_gradients(single: Any, many: Any) -> None:
    """Fail unless each part waits with its share of what one process has, in its order.

    The order decides how sums are rounded, which the bits of a few steps seldom show.
    """
    for name, table in many.embeddings.items():
        assert_shares(single.embeddings[name], table)


def trains(kind: str, name: str, seed: int, rank: int, world: int) -> None:
    """Every plan leaves the bits, confidences and row states that one process has; ranks have different batches."""
    sizes = [2 + 3 * r for r in range(world)] if seed % 2 else [5] * world
    batches = [Batch(seed + step, sizes, dim_of(kind, world)) for step in range(4)]
    steps(kind, world, rank, both(kind, world), OPTIMIZERS[name], batches)


@of_kinds("skipped")
def skips(kind: str, rank: int, world: int) -> None:
    """An index outside its table keeps its place: a row of zeros, which trains nothing."""
    pair = both(kind, world, bounds="skip", need_indices=True)
    batches = [Batch(step, [4] * world, dim_of(kind, world), beyond=9) for step in range(3)]
    result = pair[1](batches[0].features(rank))
    for name, rows in zip(NAMES, (50, 50, 31, 40), strict=True):
        indices = batches[0].indices[name[0]][batches[0].entries(name, rank)]
        assert result[name].weights().equal(indices), name
        outside = (indices < 0) | (indices >= rows)
        assert (result[name].values() == 0).all(1).equal(outside), name
    steps(kind, world, rank, pair, CounterSGD, batches)


@of_kinds("numbers")
def trains_numbers(kind: str, rank: int, world: int) -> None:
    """Values that are binary numbers: rows of them arrive, skipped ones as zeros, and one counter drives each."""
    dim = dim_of(kind, world) // 4
    batches = [Batch(step, [4] * world, dim, beyond=9) for step in range(3)]
    pair = both(kind, world, bits_per_value=4, code="binary", bounds="skip")
    with undivided():
        steps(kind, world, rank, pair, partial(CounterSGD, bits=2), batches)


@of_kinds("clamped")
def clamps(kind: str, rank: int, world: int) -> None:
    batches = [Batch(step, [4] * world, dim_of(kind, world), beyond=9) for step in range(2)]
    steps(kind, world, rank, both(kind, world, bounds="clamp"), CounterSGD, batches)


@of_kinds("bf16")
def sends_bf16(kind: str, rank: int, world: int) -> None:
    """Gradients of eight significant bits arrive whole in bfloat16, so that even then the bits are equal."""
    config = QCommsConfig(forward_precision=CommType.FP32, backward_precision=CommType.BF16)
    sharder = PackedEmbeddingCollectionSharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config))
    batch = Batch(5, [4] * world, dim_of(kind, world))
    batch.grads = {name: grad.bfloat16().float() for name, grad in batch.grads.items()}
    steps(kind, world, rank, both(kind, world, sharder), CounterSGD, [batch])


@of_kinds("bytes")
def sends_bits(kind: str, rank: int, world: int) -> None:
    """A row of 100 columns costs 13 bytes on the wire."""
    _, many = both(kind, world)
    batch = Batch(6, [4] * world, dim_of(kind, world))
    many(batch.features(rank))
    sent = torch.zeros(1, dtype=torch.int64)
    for dist_of in tables_of(many)._output_dists:
        codecs = getattr(getattr(dist_of, "_dist", None), "_codecs", None)
        sent += 0 if codecs is None else codecs.forward.bytes
    dist.all_reduce(sent)
    shares = {"a@first": 1, "b": 1, "c": 1, "a@second": 0 if kind == "mixed" else 1}
    rows = sum(share * len(batch.grads[name]) for name, share in shares.items())
    expected = 0 if kind == "data" or world == 1 else rows * -(-dim_of(kind, world) // 8)
    assert int(sent) == expected


@of_kinds("no entries")
def trains_nothing(kind: str, rank: int, world: int) -> None:
    """Ranks without any entry, some or all of them: nothing hangs."""
    single, many = both(kind, world)
    batch = Batch(7, [3] * world, dim_of(kind, world), empty=world)
    found = many(batch.features(rank))
    batch.assert_same(single(batch.features(None)), found, rank)
    batch.backward(found, rank, world)
    steps(
        kind, world, rank, both(kind, world), CounterSGD, [Batch(8, [5] * world, dim_of(kind, world), empty=world - 1)]
    )


@of_kinds("no gradients")
def infers(kind: str, rank: int, world: int) -> None:
    """Without gradients nothing waits in sinks, and an index outside its table is named with its feature."""
    _, many = both(kind, world)
    batch = Batch(2, [3] * world, dim_of(kind, world))
    with torch.no_grad():
        many(batch.features(rank))
    assert all(not part.sink.parts for table in tables_of(many).embeddings.values() for part in table.parts)
    batch.indices["b"].fill_(50)
    if len(batch.indices["b"][batch.entries("b", rank)]):
        with pytest.raises(IndexError, match=r"feature 'b': indices\[0\] is 50; the table has rows 0\.\.49"):
            many(batch.features(rank))


@of_kinds("frozen")
def trains_one_of_two(kind: str, rank: int, world: int) -> None:
    """Tables that are not trained stay as they are, and no rank waits for them."""
    _, many = both(kind, world)
    frozen = [part for name in ("first", "only") for part in tables_of(many).embeddings[name].parts]
    for part in frozen:
        part.anchor.requires_grad_(False)
    before = [part.words.clone() for part in frozen]
    optimizer = CounterSGD(packed_parameters(many), seed=1)
    batch = Batch(3, [3] * world, dim_of(kind, world))
    found = many(batch.features(rank))
    if found["c"].values().requires_grad:  # where its rows come from other ranks
        found["c"].values().sum().backward(retain_graph=True)
        optimizer.zero_grad()
    found = many(batch.features(rank))
    found["a@second"].values().sum().backward()
    optimizer.step()
    assert all(part.words.equal(old) for part, old in zip(frozen, before, strict=True))


def refuses_two_widths(world: int) -> None:
    """TorchRec's exchange of sequences knows one width of parts."""
    if world == 1:
        return
    plans = {name: column_wise(ranks=[0, 1], size_per_rank=[64 * world - 32, 32]) for name in ("first", "only")}
    with pytest.raises(ArgumentError, match=rf"of parts \[32, {64 * world - 32}\] wide"):
        sharded({**plans, "second": table_wise(rank=0)}, world, collection("column", world, "meta"))


def exports(world: int, folder: Path) -> None:
    """One file holds the tables of all ranks."""
    single, many = both("mixed", world, bits_per_value=4, code="binary")
    export(many, folder / "sequences.safetensors")
    stored = packedbag.load(folder / "sequences.safetensors", verify=True)
    for name, part in single.embeddings.items():
        table = stored[f"tables.embeddings.{name}"]
        assert (table.words == part.weight.numpy()).all(), name
        assert (table.bits_per_value, table.code) == (4, "binary")


def trains_scales(rank: int, world: int) -> None:
    """Scales are dense: DDP takes the mean of their gradients; bits get theirs times the scale."""
    single, many = both("mixed", world, scale="table")
    for model in (single, tables_of(many)):
        with torch.no_grad():
            for number, scale in enumerate(model.scales.values()):
                scale.fill_(0.5 * 2**number)
    batch = Batch(4, [3] * world, dim_of("mixed", world))
    expected, found = single(batch.features(None)), many(batch.features(rank))
    batch.assert_same(expected, found, rank)
    batch.backward(expected, None, world)
    batch.backward(found, rank, world)
    for name, scale in tables_of(many).scales.items():
        torch.testing.assert_close(scale.grad, single.scales[name].grad, rtol=1e-4, atol=1e-4)
