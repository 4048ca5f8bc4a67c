"""Where TorchRec's planner may put parts of packed tables: whole words, at most one part of a row on a rank."""

from __future__ import annotations

import copy
from typing import Any

from torchrec.distributed.planner.constants import MIN_CW_DIM
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.types import (
    Partitioner,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    Topology,
)
from torchrec.distributed.types import ShardingType

from packedbag.adapters.torchrec.collection import PackedEmbeddingBagCollection
from packedbag.adapters.torchrec.sequence import PackedEmbeddingCollection
from packedbag.core.footprint import column_parts
from packedbag.core.value_codes import column_multiple

PACKED = (PackedEmbeddingBagCollection, PackedEmbeddingCollection)
#: Sharding types by which ranks share a table's columns.
BY_COLUMNS = (ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value)


def is_packed(option: ShardingOption) -> bool:
    """Return whether an option is of a packed table; a model may have others besides."""
    return isinstance(option.module[1], PACKED)


def configs_of(module: Any) -> list[Any]:
    """Return the configs of a packed collection's tables."""
    pooled = isinstance(module, PackedEmbeddingBagCollection)
    found: list[Any] = module.embedding_bag_configs() if pooled else module.embedding_configs()
    return found


class PackedEnumerator(EmbeddingEnumerator):  # type: ignore[misc]  # TorchRec has no types
    """TorchRec's enumerator, with columns of packed tables in whole words and no more parts than ranks to hold them.

    A table is split into parts of TorchRec's ``min_partition`` columns, 128 by default, rounded up to whole words,
    and to 8 values that are binary numbers; they are wider where there are fewer ranks, or ranks of a host, than parts.
    The last part may have fewer columns, but not where sequences are looked up: TorchRec sends these in parts of one
    width. Without a constraint, each feature of a table counts with TorchRec's pooling factor.
    """

    def enumerate(self, module: Any, sharders: list[Any]) -> list[ShardingOption]:
        """Return the ways to shard each table, with their estimates."""
        options: list[ShardingOption] = super().enumerate(module, sharders)
        for option in filter(is_packed, options):
            if option.sharding_type in BY_COLUMNS:
                self._split(option)
            features = next(len(c.feature_names) for c in configs_of(option.module[1]) if c.name == option.name)
            if len(option.input_lengths) == 1:
                option.input_lengths = option.input_lengths * features
        self.populate_estimates(options)
        self._last_stored_search_space = copy.deepcopy(options)
        return options

    def _split(self, option: ShardingOption) -> None:
        """Cut an option's columns where parts may begin."""
        rows, dim = option.tensor.shape
        by_host = option.sharding_type == ShardingType.TABLE_COLUMN_WISE.value
        ranks = self._local_world_size if by_host else self._world_size
        module = option.module[1]
        multiple = column_multiple(module.bits_per_value, module.code)
        if option.is_pooled:
            sizes = column_parts(dim, ranks, self._least_columns(option.name), multiple)
        else:
            # The tables of a collection have one D, and are to be split alike.
            least = max(self._least_columns(each.name) for each in configs_of(module))
            sizes = _alike(column_parts(dim, ranks, least, multiple), dim, multiple)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        option.shards = [Shard(size=[rows, size], offset=[0, start]) for size, start in zip(sizes, starts, strict=True)]

    def _least_columns(self, table: str) -> int:
        constraint = (self._constraints or {}).get(table)
        least: int = getattr(constraint, "min_partition", None) or MIN_CW_DIM
        return least


def _alike(sizes: list[int], dim: int, multiple: int) -> list[int]:
    """Return parts of one width, at least that of ``sizes``; one part where no width divides the columns."""
    width = next((width for width in range(sizes[0], dim, multiple) if dim % width == 0), dim)
    return [width] * (dim // width)


class PackedPartitioner(GreedyPerfPartitioner):  # type: ignore[misc]
    """TorchRec's greedy partitioner, which puts parts of a packed table's columns on different ranks."""

    @classmethod
    def _device_partition(
        cls, sharding_option: ShardingOption, minheap_devices: Any, *args: Any, **kwargs: Any
    ) -> None:
        if is_packed(sharding_option) and sharding_option.num_shards > 1:
            cls._column_wise_device_partition(sharding_option, minheap_devices)
        else:
            super()._device_partition(sharding_option, minheap_devices, *args)


class CheckedPartitioner(Partitioner):  # type: ignore[misc]
    """Another partitioner, whose proposals count as failed where a rank has two parts of a packed table's columns.

    Args:
        partitioner: which places the shards.
    """

    def __init__(self, partitioner: Partitioner) -> None:
        self._partitioner = partitioner

    def partition(self, proposal: list[ShardingOption], storage_constraint: Topology) -> list[ShardingOption]:
        """Return ``proposal`` with its shards on ranks, or raise TorchRec's `PlannerError`."""
        plan: list[ShardingOption] = self._partitioner.partition(proposal, storage_constraint)
        for option in filter(is_packed, plan):
            ranks = [shard.rank for shard in option.shards]
            if option.sharding_type in BY_COLUMNS and len(set(ranks)) < len(ranks):
                raise PlannerError(
                    error_type=PlannerErrorType.PARTITION,
                    message=f"table {option.name!r} has columns on ranks {ranks}; each may have one part of them",
                )
        return plan
