"""`ShardedClickModel`: the click-through-rate model with its tables in one collection, which TorchRec shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from packedbag.adapters.torchrec_requirement import import_torchrec

import_torchrec()

from torchrec.distributed import DistributedModelParallel  # noqa: E402
from torchrec.distributed.planner import Topology  # noqa: E402
from torchrec.distributed.sharding_plan import (  # noqa: E402
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan  # noqa: E402
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

from packedbag.adapters.torchrec import (  # noqa: E402
    PackedEmbeddingBagCollection,
    PackedEmbeddingBagCollectionSharder,
    packed_planner,
)
from packedbag.core.footprint import column_parts  # noqa: E402
from packedbag.core.value_codes import column_multiple  # noqa: E402
from packedbag.recsys.chunk import Field  # noqa: E402
from packedbag.recsys.model import perceptron  # noqa: E402
from packedbag.recsys.rows import Rows  # noqa: E402
from packedbag.recsys.settings import Settings  # noqa: E402

#: The name of a sharded table's dictionary in the model.
TABLES = "tables"


class ShardedClickModel(nn.Module):
    """What `packedbag.recsys.model.ClickModel` of kind "packed" computes, for several processes.

    Args:
        fields: (F,) fields.
        rows: (F,) rows of each table.
        settings: of the run; the first bits are a function of its seed.
    """

    def __init__(self, fields: Sequence[Field], rows: Sequence[int], settings: Settings) -> None:
        super().__init__()
        #: Where one field has weights all do: an unweighted mean is one with weights of 1.
        self.weighted = any(field.weighted for field in fields)
        configs = [
            EmbeddingBagConfig(
                num_embeddings=count,
                embedding_dim=settings.embedding_dim,
                name=table_name(number),
                feature_names=[table_name(number)],
                pooling=PoolingType.SUM if field.weighted else PoolingType.MEAN,
            )
            for number, (field, count) in enumerate(zip(fields, rows, strict=True))
        ]
        values = {"bits_per_value": settings.bits_per_value, "code": settings.code}
        options = {"scale": "table", "seed": settings.seed, **values}
        self.tables = PackedEmbeddingBagCollection(configs, self.weighted, "meta", **options)  # type: ignore[arg-type]
        self.keys = [each.name for each in configs]
        width = len(configs) * settings.embedding_dim // settings.bits_per_value
        self.perceptron = perceptron(width, settings.hidden, settings.dropout)

    def forward(self, batch: Rows) -> torch.Tensor:
        """Return the logit of each row, (n,) float32."""
        found = self.tables(self._features(batch)).to_dict()
        # A plan brings tables in an order of its own.
        logits: torch.Tensor = self.perceptron(torch.cat([found[key] for key in self.keys], dim=1))
        return logits.squeeze(1)

    def _features(self, batch: Rows) -> KeyedJaggedTensor:
        columns = batch.columns
        weights = None
        if self.weighted:
            ones = [np.ones(len(c.indices), np.float32) if c.weights is None else c.weights for c in columns]
            weights = torch.from_numpy(np.concatenate(ones))
        lengths = np.concatenate([np.diff(column.offsets) for column in columns])
        return KeyedJaggedTensor(
            keys=self.keys,
            values=torch.from_numpy(np.concatenate([column.indices for column in columns])),
            lengths=torch.from_numpy(lengths.astype(np.int32)),
            weights=weights,
            stride=len(batch),
        )


def table_name(number: int) -> str:
    """Return the name of the table of field ``number``: a field's own may be no name of a module."""
    return f"field{number}"


def spread(model: ShardedClickModel, sharding: str, settings: Settings) -> nn.Module:
    """Return ``model`` with its tables on all ranks of the default process group.

    Args:
        sharding: "table", "row", "column", or "auto": as TorchRec's planner finds best.
        settings: of the run.
    """
    sharder = PackedEmbeddingBagCollectionSharder()
    world, device = dist.get_world_size(), torch.device("cpu")
    if sharding == "auto":
        topology = Topology(world_size=world, local_world_size=world, compute_device=device.type)
        planner = packed_planner(topology, bits=settings.bits, batch_size=max(settings.batch_size // world, 1))
        plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    else:
        plans = _plans(model, sharding, world)
        of_tables = construct_module_sharding_plan(
            model.tables, plans, sharder=sharder, local_size=world, world_size=world, device_type=device.type
        )
        plan = ShardingPlan(plan={TABLES: of_tables})
    return DistributedModelParallel(  # type: ignore[no-any-return]
        model, env=ShardingEnv.from_process_group(dist.group.WORLD), device=device, plan=plan, sharders=[sharder]
    )


def _by_column(dim: int, multiple: int, world: int, number: int) -> object:
    """Return where the columns of table ``number`` lie, each part from a multiple of ``multiple`` on.

    Where parts are alike, tables begin on different ranks: the first part of a row has its state word.
    """
    parts = column_parts(dim, world, multiple, multiple)
    if len(set(parts)) > 1:
        return column_wise(size_per_rank=parts)
    return column_wise(ranks=[(number + i) % world for i in range(len(parts))])


def _plans(model: ShardedClickModel, sharding: str, world: int) -> dict[str, object]:
    """Return where each table lies: whole tables on the ranks that have least so far, or all tables cut alike."""
    configs = model.tables.embedding_bag_configs()
    if sharding == "row":
        return {each.name: row_wise() for each in configs}
    if sharding == "column":
        multiple = column_multiple(model.tables.bits_per_value, model.tables.code)
        return {
            each.name: _by_column(each.embedding_dim, multiple, world, number) for number, each in enumerate(configs)
        }
    held, plans = [0] * world, {}
    for each in sorted(configs, key=lambda config: -config.num_embeddings):
        rank = held.index(min(held))
        held[rank] += each.num_embeddings
        plans[each.name] = table_wise(rank=rank)
    return plans
