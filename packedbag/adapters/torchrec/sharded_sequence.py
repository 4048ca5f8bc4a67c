"""`ShardedPackedEmbeddingCollection`: packed tables of sequences, spread over the ranks by TorchRec's plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torchrec.distributed.embedding import EmbeddingCollectionContext, ShardedEmbeddingCollection
from torchrec.distributed.embedding_sharding import EmbeddingSharding, EmbeddingShardingInfo, KJTListSplitsAwaitable
from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist
from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext
from torchrec.distributed.types import ParameterSharding, QuantizedCommCodecs, ShardingEnv, ShardingType
from torchrec.sparse.jagged_tensor import JaggedTensor

from packedbag.adapters.torchrec.asked import Asked, asked_for
from packedbag.adapters.torchrec.row_lookup import ReplicatedRows, RowLookup
from packedbag.adapters.torchrec.row_wire import row_codecs
from packedbag.adapters.torchrec.sequence import PackedEmbeddingCollection
from packedbag.adapters.torchrec.sharded_table import ShardedTables, as_table, real_scales, shard_tables, whole_tables
from packedbag.core.errors import ArgumentError
from packedbag.core.value_codes import values_of


@dataclass
class PackedSequenceContext(EmbeddingCollectionContext):  # type: ignore[misc]  # TorchRec has no types
    """What a batch carries from its input distribution to its output: besides TorchRec's, what was asked for."""

    asked: Asked | None = None

    def record_stream(self, stream: Any) -> None:
        """Tell CUDA's allocator that ``stream`` uses the context."""
        super().record_stream(stream)
        if self.asked is not None:
            self.asked.record_stream(stream)


class _AsFloats:
    """The collection as TorchRec's constructor is to see it: float tables that have no values yet."""

    device = torch.device("meta")

    def __init__(self, module: PackedEmbeddingCollection) -> None:
        self.embedding_configs = module.embedding_configs
        self.embedding_names_by_table = module.embedding_names_by_table
        self.embedding_dim = module.embedding_dim

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            f"embeddings.{each.name}.weight": as_table(each.num_embeddings, each.embedding_dim)
            for each in self.embedding_configs()
        }

    def named_parameters(self) -> Any:
        return self.state_dict().items()

    def need_indices(self) -> bool:
        return False  # the indices are added at the end: what is sent is in other order, or narrower

    def use_gather_select(self) -> bool:
        return False

    def use_gather_select_per_sharding(self) -> None:
        return None


class ShardedPackedEmbeddingCollection(ShardedTables, ShardedEmbeddingCollection):  # type: ignore[misc]
    """A `PackedEmbeddingCollection` on several ranks; `PackedEmbeddingCollectionSharder` makes it.

    Inputs and outputs travel through TorchRec's exchanges, rows in one bit a weight; lookups are packed. Train it with
    ``CounterSGD(packed_parameters(model))``: with the same gradients, its words, confidences and row states are those
    that one process would have, bit for bit.

    Raises:
        ArgumentError: columns are split where no part may begin, or in parts of different widths, or one rank has two
            of them.
    """

    tables_name = "embeddings"

    def __init__(
        self,
        module: PackedEmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        module_fqn: str | None = None,
    ) -> None:
        # In a tuple, as no module can be an attribute yet.
        self._source, self._plan = (module,), table_name_to_parameter_sharding
        self._columns = _width_of_parts(self._plan, module.embedding_configs())
        super().__init__(
            _AsFloats(module),
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            qcomm_codecs_registry=qcomm_codecs_registry,
            module_fqn=module_fqn,
        )
        self._use_index_dedup = False  # a process-wide flag may ask for it; it sums gradients in another order
        self._need_indices = module.need_indices()
        self.embeddings = torch.nn.ModuleDict(self._tables)
        self.scales = real_scales(module.scales, device)
        self.bounds, self.bits_per_value, self.code = module.bounds, module.bits_per_value, module.code
        self._describe_features()
        del self._source, self._tables

    # How it is built: TorchRec's constructor calls these -------------------------------------------------------

    def create_embedding_sharding(
        self,
        sharding_type: str,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> EmbeddingSharding:
        """Return TorchRec's sharding of these tables, with codecs for their rows."""
        (source,) = self._source
        codecs = row_codecs(qcomm_codecs_registry, self._dim_of(sharding_type), source.bits_per_value, source.code)
        return ShardedEmbeddingCollection.create_embedding_sharding(sharding_type, sharding_infos, env, device, codecs)

    def _dim_of(self, sharding_type: str) -> int:
        """Return the columns of the rows that lookups of this type return."""
        by_columns = sharding_type == ShardingType.COLUMN_WISE.value
        dim: int = self._columns if by_columns else self._source[0].embedding_dim()
        return dim

    def _create_lookups(self) -> None:
        (source,) = self._source
        whole = whole_tables(source.seed, source.embedding_configs(), source.embeddings)
        self._tables = shard_tables(whole, self._plan, self._env, self._device)
        for kind, sharding in self._sharding_type_to_sharding.items():
            mine = sharding._grouped_embedding_configs_per_rank[self._env.rank]
            local = [table for group in mine for table in group.embedding_tables]
            parts = [self._tables[table.name].part_of(table.local_metadata) for table in local]
            replicated = kind == ShardingType.DATA_PARALLEL.value
            features = [table.num_features() for table in local]
            lookup = RowLookup(parts, features, self._dim_of(kind), exchanged=not replicated)
            self._lookups.append(ReplicatedRows(lookup, self._env.process_group) if replicated else lookup)

    def init_data_parallel(self) -> None:
        """Leave data-parallel lookups as they are: they exchange rows, where DDP would exchange whole tables."""

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        """Register nothing: `ShardedTable` says what a checkpoint holds."""

    def _describe_features(self) -> None:
        """Note, for each feature as TorchRec orders them, its table; and where each result's feature is."""
        table_of = {
            name: config.name
            for config, names in zip(self._embedding_configs, self._source[0].embedding_names_by_table(), strict=True)
            for name in names
        }
        self._flat_names, self._flat_rows = [], []
        self._places: dict[str, int] = {}
        for sharding in self._sharding_type_to_sharding.values():
            # A table split by columns has its features once for each part.
            for feature, name in zip(sharding.feature_names(), sharding.embedding_names(), strict=True):
                self._places.setdefault(name, len(self._flat_names))
                self._flat_names.append(feature)
                self._flat_rows.append(self._table_name_to_config[table_of[name]].num_embeddings)
        self._table_of = table_of

    # How a batch goes through it -------------------------------------------------------------------------------

    def create_context(self) -> PackedSequenceContext:
        """Return the context of one batch."""
        return PackedSequenceContext()

    def input_dist(self, ctx: PackedSequenceContext, features: Any) -> Any:
        """Send the indices to the ranks that hold their rows."""
        if self._has_uninitialized_input_dist:
            self._create_input_dist(self._flat_names)
            self._has_uninitialized_input_dist = False
        with torch.no_grad():
            ctx.asked = asked_for(features, self._flat_names, self._flat_rows, self.bounds)
            awaitables = []
            for input_dist, part in zip(self._input_dists, ctx.asked.inside.split(self._feature_splits), strict=True):
                awaitables.append(input_dist(part))
                by_rows = isinstance(input_dist, RwSparseFeaturesDist)
                ctx.sharding_contexts.append(
                    SequenceShardingContext(
                        features_before_input_dist=part,
                        unbucketize_permute_tensor=input_dist.unbucketize_permute_tensor if by_rows else None,
                    )
                )
        return KJTListSplitsAwaitable(awaitables, ctx, self._module_fqn, self._sharding_types)

    def output_dist(self, ctx: PackedSequenceContext, output: list[torch.Tensor]) -> Any:
        """Send each rank the rows of its samples."""
        awaitable = super().output_dist(ctx, output)
        awaitable.callbacks.append(partial(self._finish, ctx.asked))
        return awaitable

    def compute_and_output_dist(self, ctx: PackedSequenceContext, dist_input: Any) -> Any:
        """Look rows up, and send each rank those of its samples."""
        awaitable = super().compute_and_output_dist(ctx, dist_input)
        awaitable.callbacks.append(partial(self._finish, ctx.asked))
        return awaitable

    def _finish(self, asked: Asked, received: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Scale what has arrived, in the order of the collection's tables, and put it in its places."""
        found = {}
        for name, table in self._table_of.items():
            rows = received[name].values()
            if self.scales:
                rows = rows * self.scales[table]
            rows = values_of(rows, self.bits_per_value, self.code)
            found[name] = asked.sequence(self._places[name], rows, need_indices=self._need_indices)
        return found

    # What TorchRec asks of it -----------------------------------------------------------------------------------

    @property
    def unsharded_module_type(self) -> type[PackedEmbeddingCollection]:
        """What it was made of."""
        return PackedEmbeddingCollection


def _width_of_parts(plan: Mapping[str, ParameterSharding], configs: Any) -> int:
    """Return how many columns each part of the tables that are split by columns has; 0 where none is.

    Raises:
        ArgumentError: they differ: TorchRec's exchange of sequences knows one width.
    """
    widths = {
        shard.shard_sizes[1]
        for each in configs
        if plan[each.name].sharding_type == ShardingType.COLUMN_WISE.value
        for shard in plan[each.name].sharding_spec.shards
    }
    if len(widths) > 1:
        advice = "Pass column_wise(ranks=[...], size_per_rank=[...]) with equal sizes."
        raise ArgumentError("the plan of tables by columns", f"of parts {sorted(widths)} wide", "one width", advice)
    return widths.pop() if widths else 0
