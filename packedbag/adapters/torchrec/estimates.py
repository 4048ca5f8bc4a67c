"""What packed tables cost, for TorchRec's planner: bytes that a shard takes, and the time that its batch takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torchrec.distributed.comm import get_local_size, get_topology_domain_multiple
from torchrec.distributed.planner.constants import BATCH_SIZE
from torchrec.distributed.planner.planners import EmbeddingShardingPlanner
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
    get_num_poolings,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    CollectiveType,
    ParameterConstraints,
    Perf,
    Shard,
    SharderData,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.distributed.types import CommOp, ShardingType
from torchrec.distributed.utils import get_device_type

from packedbag.adapters.torchrec.placement import (
    CheckedPartitioner,
    PackedEnumerator,
    PackedPartitioner,
    configs_of,
    is_packed,
)
from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import (
    FLOAT,
    Footprint,
    Traffic,
    count_bits,
    distinct_gradients,
    distinct_rows,
    footprint,
    index_bytes,
    traffic,
)

Constraints = dict[str, ParameterConstraints]

#: The part of a GPU's memory that plans leave free, as TorchRec's own reservation does.
RESERVE = 0.15
ADAPTIVITIES = (None, "ema", "adagrad")
REPLICATED = ShardingType.DATA_PARALLEL.value
#: Plans by which ranks add up counts, rather than only exchange them.
BY_ROWS = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value)


@dataclass(frozen=True)
class Feed:
    """What one rank's batch asks of a table.

    Attributes:
        bags: samples times features.
        entries: ids in them.
        index: bytes of an id on the wire, with its weight.
        bits: of a column on the wire forward.
        gradient: bytes of a column on the wire backward, its part of those of its value.
    """

    bags: float
    entries: float
    index: int
    bits: int
    gradient: float


class PackedEstimator(ShardEstimator):  # type: ignore[misc]  # TorchRec has no types
    """What the estimators of packed tables share. Tables that are not packed are left to TorchRec's own.

    Args:
        topology: the ranks.
        constraints: of the tables, by name; pooling factors, batch sizes and numbers of poolings are read.
        bits: of a weight in training, 1 to 8; None where the tables only serve.
        adaptivity: the optimizer's; None has no word a row.

    Raises:
        ArgumentError: bits or adaptivity are none of these.
    """

    #: TorchRec's estimator of the same.
    other: Any

    def __init__(
        self,
        topology: Topology,
        constraints: Constraints | None = None,
        *,
        bits: int | None = 8,
        adaptivity: str | None = "ema",
    ) -> None:
        if bits not in (None, *range(1, 9)):
            raise ArgumentError("bits", repr(bits), "in 1..8, or None for tables that only serve")
        if adaptivity not in ADAPTIVITIES:
            raise ArgumentError("adaptivity", repr(adaptivity), "'ema', 'adagrad' or None")
        self.topology, self.constraints = topology, constraints
        self.bits, self.row_state = bits, adaptivity is not None
        self._other = self.other(topology=topology, constraints=constraints)

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        """Set the estimate of every shard of every option, in place."""
        for option in filter(is_packed, sharding_options):
            feed = self.feed(option, sharder_data_map[option.module_type_key])
            for shard in option.shards:
                self.set_estimate(option, shard, feed)
        others = [option for option in sharding_options if not is_packed(option)]
        if others:
            self._other.estimate(others, sharder_data_map)

    def set_estimate(self, option: ShardingOption, shard: Shard, feed: Feed) -> None:
        """Set the estimate of one shard, in place."""
        raise NotImplementedError

    def feed(self, option: ShardingOption, sharder: SharderData) -> Feed:
        """Return what a rank's batch asks of the option's table.

        How wide counts are depends on a batch's longest bag; here the pooling factor, a mean, stands for it.
        """
        constraint = (self.constraints or {}).get(option.name)
        lengths, poolings = option.input_lengths, get_num_poolings(self.constraints, option)
        batches = getattr(constraint, "batch_sizes", None) or [option.batch_size] * len(lengths)
        counts = [len(lengths), len(poolings), len(batches)]
        if len(set(counts)) > 1:
            what = f"constraints[{option.name!r}]"
            advice = "Give a pooling factor, a batch size and a number of poolings for each feature."
            raise ArgumentError(what, f"for {counts} features", "for as many in all its lists", advice)
        module = option.module[1]
        weighted = option.is_pooled and module.is_weighted()
        forward, backward = sharder.qcomm_dtype_sizes.get(_exchange_of(option).name, (FLOAT, FLOAT))
        return Feed(
            bags=sum(p * b for p, b in zip(poolings, batches, strict=True)),
            entries=sum(n * p * b for n, p, b in zip(lengths, poolings, batches, strict=True)),
            index=index_bytes(max(each.num_embeddings for each in configs_of(module))) + (FLOAT if weighted else 0),
            bits=int(8 * forward) if weighted else _bits_of(option),
            gradient=backward / module.bits_per_value,
        )

    def footprint(self, shard: Shard) -> Footprint:
        """Return what a shard takes without its batch; the first of a row's parts has its state word."""
        rows, columns = shard.size
        return footprint(rows, columns, self.bits, row_state=self.row_state and shard.offset[1] == 0)

    def traffic(self, option: ShardingOption, shard: Shard, feed: Feed, ranks: float) -> Traffic:
        """Return what passes between a shard and ``ranks`` ranks in a step; ids are spread over rows evenly."""
        split = shard.size[1] < option.tensor.shape[1] and self.row_state and self.bits is not None
        found = traffic(
            columns=shard.size[1],
            bags=ranks * feed.bags,
            entries=ranks * self.share(option, shard) * feed.entries,
            index=feed.index,
            bits=feed.bits,
            gradient=feed.gradient,
            pooled=option.is_pooled,
            shared_gradients=self.gradients(option, shard, feed) if split else 0,
            shared_rows=self.touched(option, shard, feed) if split else 0,
        )
        if option.sharding_type == REPLICATED:  # they are looked up where they are used
            return Traffic(found.indices, 0, found.gradients)
        return found

    def share(self, option: ShardingOption, shard: Shard) -> float:
        """Return which part of a table's ids a shard's rows get."""
        rows: int = option.tensor.shape[0]
        return shard.size[0] / rows if rows else 0.0

    def touched(self, option: ShardingOption, shard: Shard, feed: Feed) -> int:
        """Return how many rows of a shard the batches of all ranks are expected to hit."""
        return distinct_rows(shard.size[0], self.topology.world_size * self.share(option, shard) * feed.entries)

    def gradients(self, option: ShardingOption, shard: Shard, feed: Feed) -> int:
        """Return how many gradients these rows are expected to have between them; in sequences, each its own."""
        ranks = self.topology.world_size
        entries = ranks * self.share(option, shard) * feed.entries
        lines = ranks * feed.bags if option.is_pooled else entries
        return distinct_gradients(shard.size[0], entries, lines)


class PackedStorageEstimator(PackedEstimator):
    """Estimates bytes: words, and in training planes, a word a row, and the buffers of a batch.

    The buffers are what `Traffic` has with all ranks, this one too. Tables that only serve are counted without them, as
    TorchRec does. Left out: the optimizer's totals, 64 bytes a table.
    """

    other = EmbeddingStorageEstimator

    def set_estimate(self, option: ShardingOption, shard: Shard, feed: Feed) -> None:
        """Set ``shard.storage``: in "hbm" where tables are on a GPU, else in "ddr"."""
        size = self.footprint(shard).total
        if self.bits is not None:
            size += self.traffic(option, shard, feed, self.topology.world_size).total
        on_host = self.topology.compute_device == "cpu"
        shard.storage = Storage(hbm=0 if on_host else size, ddr=size if on_host else 0)


class PackedPerfEstimator(PackedEstimator):
    """Estimates milliseconds, as TorchRec's does, from bytes over the topology's bandwidths.

    Lookups read ids and packed rows, and write float32. A step reads a gradient row for each id, and reads and
    writes words, planes and row states of the distinct rows, each row being as likely. Exchanges take what `Traffic`
    has with the other ranks.
    """

    other = EmbeddingPerfEstimator

    def set_estimate(self, option: ShardingOption, shard: Shard, feed: Feed) -> None:
        """Set ``shard.perf``."""
        world, columns, trains = self.topology.world_size, shard.size[1], self.bits is not None
        memory = self.topology.ddr_mem_bw if self.topology.compute_device == "cpu" else self.topology.hbm_mem_bw
        # A replicated table is looked up for this rank's samples, and updated by those of all.
        updates = world * self.share(option, shard) * feed.entries
        lookups, bags = updates, world * feed.bags
        if option.sharding_type == REPLICATED:
            lookups, bags = feed.entries, feed.bags
        results = bags if option.is_pooled else lookups
        forward = lookups * (feed.index + footprint(1, columns).table) + results * columns * FLOAT
        changed = footprint(1, columns, self.bits, row_state=self.row_state).total
        backward = updates * columns * FLOAT + 2 * self.touched(option, shard, feed) * changed
        indices, results_back, gradients = self._exchange(option, shard, feed)
        shard.perf = Perf(
            fwd_compute=forward / memory,
            fwd_comms=results_back,
            bwd_compute=backward / memory if trains else 0.0,
            bwd_comms=gradients if trains else 0.0,
            input_dist_comms=indices,
        )

    def _exchange(self, option: ShardingOption, shard: Shard, feed: Feed) -> tuple[float, float, float]:
        """Return the milliseconds that indices, results and gradients are under way."""
        world, local = self.topology.world_size, self.topology.intra_group_size
        others = self.traffic(option, shard, feed, world - 1)
        everywhere = self._bandwidth(CollectiveType.ALL_TO_ALL, world)
        indices = others.indices / everywhere
        if option.sharding_type == REPLICATED:  # ids and gradients, when the batch has been looked up
            return 0.0, 0.0, (others.indices + others.gradients) / self._bandwidth(CollectiveType.ALL_GATHER, world)
        if option.sharding_type == ShardingType.TABLE_ROW_WISE.value:
            # The ranks of a host add up the bags of all ranks, then send other hosts theirs.
            hosts = world / local
            inside, across = (self.traffic(option, shard, feed, n) for n in ((local - 1) * hosts, hosts - 1))
            return (
                indices,
                inside.forward / self._bandwidth(CollectiveType.REDUCE_SCATTER, local) + across.forward / everywhere,
                inside.gradients / self._bandwidth(CollectiveType.ALL_GATHER, local) + across.gradients / everywhere,
            )
        if option.sharding_type == ShardingType.ROW_WISE.value and option.is_pooled:
            return (
                indices,
                others.forward / self._bandwidth(CollectiveType.REDUCE_SCATTER, world),
                others.gradients / self._bandwidth(CollectiveType.ALL_GATHER, world),
            )
        return indices, others.forward / everywhere, (others.gradients + others.statistics) / everywhere

    def _bandwidth(self, collective: CollectiveType, ranks: int) -> float:
        found: float = self.topology.comms_bandwidths.get_bw(self.topology.intra_group_size, ranks, collective)
        return found


def _exchange_of(option: ShardingOption) -> CommOp:
    """Return by which of TorchRec's exchanges the results of an option travel."""
    if not option.is_pooled:
        return CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL
    by_rows = option.sharding_type in BY_ROWS
    return CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER if by_rows else CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL


def _bits_of(option: ShardingOption) -> int:
    """Return the bits of a column forward: one of a row, or of a majority that is decided where all its rows are."""
    decided = not option.is_pooled or (
        option.module[1].modes[option.name] == "majority" and option.sharding_type not in BY_ROWS
    )
    return 1 if decided else count_bits(math.ceil(max(option.input_lengths)))


def packed_planner(
    topology: Topology | None = None,
    *,
    bits: int | None = 8,
    adaptivity: str | None = "ema",
    batch_size: int | None = None,
    constraints: Constraints | None = None,
    **kwargs: Any,
) -> EmbeddingShardingPlanner:
    """Return TorchRec's planner, with estimates of packed tables, which it splits at whole words.

    Every type of sharding of `PackedEmbeddingBagCollectionSharder` is proposed, column-wise ones with at most one part
    of a table on a rank. A model may have tables besides that are not packed: TorchRec estimates these.

    Args:
        topology: the ranks; None: those of the process group.
        bits: of a weight in training, as `CounterSGD` and its like have them; None where the tables only serve.
        adaptivity: the optimizer's.
        batch_size: samples of a rank; None: TorchRec's default.
        constraints: of tables, by name. Pooling factors are worth telling: TorchRec's default is 1.
        kwargs: for `EmbeddingShardingPlanner`. A ``partitioner`` is asked again until it has no two parts on a rank;
            the default ``storage_reservation`` leaves 15 % of a GPU's memory free.

    Raises:
        ArgumentError: bits or adaptivity are not allowed, or there are neither a topology nor a process group.
    """
    ranks = _ranks() if topology is None else topology
    size = batch_size or BATCH_SIZE
    options: dict[str, Any] = {"bits": bits, "adaptivity": adaptivity}
    estimators = [
        PackedPerfEstimator(ranks, constraints, **options),
        PackedStorageEstimator(ranks, constraints, **options),
    ]
    partitioner = kwargs.pop("partitioner", None)
    kwargs.setdefault("storage_reservation", FixedPercentageStorageReservation(RESERVE))
    return EmbeddingShardingPlanner(
        topology=ranks,
        batch_size=size,
        enumerator=PackedEnumerator(ranks, size, constraints, estimators),
        partitioner=PackedPartitioner() if partitioner is None else CheckedPartitioner(partitioner),
        constraints=constraints,
        **kwargs,
    )


def _ranks() -> Topology:
    """Return the ranks of the process group, as TorchRec's planner sees them."""
    if not dist.is_initialized():
        advice = (
            "Pass Topology(world_size=..., compute_device=...), or call torch.distributed.init_process_group first."
        )
        raise ArgumentError("topology", "None", "a Topology where there is no process group", advice)
    return Topology(
        world_size=dist.get_world_size(),
        compute_device=get_device_type(),
        local_world_size=get_local_size(),
        pod_size=get_topology_domain_multiple(),
    )
