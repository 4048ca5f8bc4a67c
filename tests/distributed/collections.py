"""Collections, batches and plans that the distributed checks share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from packedbag.adapters.torchrec import PackedEmbeddingBagCollection, PackedEmbeddingBagCollectionSharder
from tests.distributed.places import place

#: Rows of the features' tables: "a" is of two tables, one of which has another feature, too.
FEATURES = {"a": 40, "b": 50, "c": 31}
MAJORITY = ("votes",)
KINDS = ("table", "row", "column", "data", "table_row", "mixed")


def tables() -> list[EmbeddingBagConfig]:
    """Return a table of two features, a mean whose columns do not fill words, and one whose feature is shared."""
    return [
        EmbeddingBagConfig(num_embeddings=50, embedding_dim=128, name="sums", feature_names=["a", "b"]),
        EmbeddingBagConfig(
            num_embeddings=31, embedding_dim=100, name="means", feature_names=["c"], pooling=PoolingType.MEAN
        ),
        EmbeddingBagConfig(num_embeddings=40, embedding_dim=64, name="votes", feature_names=["a"]),
    ]


def plan_of(kind: str, world: int, per_node: int) -> dict[str, Any]:
    """Return a plan of each table."""
    ranks = list(range(world))
    plans = {
        "table": [table_wise(rank=i % world) for i in range(3)],
        "row": [row_wise() for _ in range(3)],
        "column": [
            column_wise(size_per_rank=[64, 32, 32]) if world == 3 else column_wise(ranks=ranks[::-1]),
            column_wise(size_per_rank=[64, 36]) if world > 1 else table_wise(rank=0),
            table_wise(rank=0),
        ],
        "data": [data_parallel() for _ in range(3)],
        "table_row": [table_row_wise(host_index=i % (world // per_node)) for i in range(3)],
        "mixed": [row_wise(), table_wise(rank=world - 1), data_parallel()],
    }
    return dict(zip(("sums", "means", "votes"), plans[kind], strict=True))


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Let TorchRec hand gradients on as they are, where a division by 3 ranks and another one do not commute."""
    set_gradient_division(False)
    try:
        yield
    finally:
        set_gradient_division(True)


class Tables(torch.nn.Module):
    """A model that is a collection alone. It returns a tensor: DDP looks for some in what a model returns."""

    def __init__(self, collection: torch.nn.Module) -> None:
        super().__init__()
        self.tables = collection

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Return the columns of all features, `by_key`."""
        return by_key(self.tables(features))


def sharded(
    plans: dict[str, Any], world: int, per_node: int, collection: Any, sharder: Any = None, model: Any = None
) -> Any:
    """Return ``collection`` on all ranks, as ``plans`` says, inside a `DistributedModelParallel`.

    ``model`` has it as ``tables``; None: a model that is the collection alone.
    """
    sharder, where = sharder or PackedEmbeddingBagCollectionSharder(), place()
    module_plan = construct_module_sharding_plan(
        collection, plans, sharder=sharder, local_size=per_node, world_size=world, device_type=where.device
    )
    return DistributedModelParallel(
        model or Tables(collection),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=where.device_of(dist.get_rank()),
        plan=ShardingPlan(plan={"tables": module_plan}),
        sharders=[sharder],
    )


def tables_of(model: Any) -> Any:
    """Return the sharded collection of a model that `sharded` made."""
    wrapped = model.module
    return getattr(wrapped, "module", wrapped).tables  # DDP, where there are scales


def packed(device: str = "cpu", **options: Any) -> PackedEmbeddingBagCollection:
    """Return the collection of `tables`; the same first bits each time."""
    options = {"majority": MAJORITY, "seed": 3, **options}
    return PackedEmbeddingBagCollection(tables(), device=device, **options)


class Batch:
    """A batch of all ranks: ``sizes`` samples on each, bags of 0 to ``longest`` entries."""

    def __init__(self, seed: int, sizes: list[int], longest: int = 4, *, weighted: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sizes, self.weighted = sizes, weighted
        shape = (len(FEATURES), sum(sizes))
        self.lengths = torch.randint(0, longest + 1, shape, generator=generator, dtype=torch.int32)
        self.bags = {
            name: [torch.randint(0, rows, (int(n),), generator=generator) for n in lengths]
            for (name, rows), lengths in zip(FEATURES.items(), self.lengths, strict=True)
        }
        self.weights = {
            name: [torch.randn(len(bag), generator=generator) for bag in bags] for name, bags in self.bags.items()
        }
        #: What each sample's loss hands back for its columns, in order of keys.
        self.grad = torch.randn(sum(sizes), 2 * 128 + 100 + 64, generator=generator)

    def samples(self, rank: int | None) -> slice:
        """Return which samples are a rank's; None: all."""
        if rank is None:
            return slice(0, sum(self.sizes))
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])

    def features(self, rank: int | None) -> KeyedJaggedTensor:
        """Return the features of a rank's samples."""
        mine = self.samples(rank)

        def joined(bags: dict[str, list[torch.Tensor]]) -> torch.Tensor:
            return torch.cat([bag for each in bags.values() for bag in each[mine]])

        return KeyedJaggedTensor(
            keys=list(FEATURES),
            values=joined(self.bags),
            lengths=self.lengths[:, mine].reshape(-1),
            weights=joined(self.weights) if self.weighted else None,
        )


def by_key(result: Any) -> torch.Tensor:
    """Return the columns of a KeyedTensor in order of its keys, which plans bring in orders of their own."""
    found = result.to_dict()
    return torch.cat([found[key] for key in sorted(found)], 1)


def assert_shares(whole: Any, table: Any) -> None:
    """Fail unless each part of ``table`` waits with its share of the gradients of ``whole``, in its order.

    The order decides how sums are rounded, which the bits of a few steps seldom show.
    """
    (all_of,) = whole.sink.parts
    for part in table.parts:
        if part.num_embeddings:
            (found,) = part.sink.parts
            first, column = part.shard.first_row, part.shard.first_column
            mine = (all_of.rows >= first) & (all_of.rows < first + part.num_embeddings)
            assert (found.rows + first).equal(all_of.rows[mine]), table.table_name
            first_value, end = column // part.bits_per_value, (column + part.embedding_dim) // part.bits_per_value
            expected = all_of.grad[all_of.bags[mine], first_value:end]
            assert found.grad[found.bags].equal(expected), table.table_name


def assert_same_parts(table: Any, words: torch.Tensor, expected: dict[str, Any], optimizer: Any) -> None:
    """Fail unless each part of a table is the same part of ``words``, and its state of ``expected``.

    Args:
        table: this rank's parts.
        words: (V, W) int32, of one process.
        expected: the state of its optimizer.
        optimizer: of the parts.
    """
    for part in table.parts:
        if part.num_embeddings == 0:
            continue
        rows, columns = slices_of(part)
        found, name = optimizer.state[part.anchor], table.table_name
        assert part.words.device == found["planes"].device == place().device_of(dist.get_rank())
        assert part.words.cpu().equal(words[rows, columns]), name
        assert found["planes"].cpu().equal(expected["planes"][rows, columns]), name
        if "row_state" in expected:
            assert ("row_state" in found) == (part.shard.part == 0), name  # one of a row's holders keeps its word
        if "row_state" in found:
            assert found["row_state"].cpu().equal(expected["row_state"][rows]), name
            assert found["totals"][4:6].cpu().equal(expected["totals"][4:6]), name  # the typical statistic


def assert_same_tables(single: Any, many: Any, ours: Any, theirs: Any) -> None:
    """Fail unless the tables of a sharded model, and their optimizer's state, are those of one process.

    Args:
        single: a collection that `packed` made, which has been trained by ``ours``.
        many: what `sharded` made, trained by ``theirs``.
        ours, theirs: the optimizers.
    """
    for name, table in tables_of(many).embedding_bags.items():
        whole = single.embedding_bags[name]
        assert not packed().embedding_bags[name].words.equal(whole.words), "no bit has changed: the check sees nothing"
        assert_same_parts(table, whole.words, ours.state[whole.anchor], theirs)


def slices_of(part: Any) -> tuple[slice, slice]:
    """Return the rows, and the words of each, that a part of a table is."""
    first = part.shard.first_column // 32
    rows = slice(part.shard.first_row, part.shard.first_row + part.num_embeddings)
    return rows, slice(first, first + part.words.shape[1])
