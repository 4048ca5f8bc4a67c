"""`ShardedPackedEmbeddingBagCollection`: packed tables spread over the ranks by TorchRec's plans."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.embedding_sharding import (
    EmbeddingSharding,
    EmbeddingShardingContext,
    EmbeddingShardingInfo,
    KJTListSplitsAwaitable,
)
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionAwaitable,
    EmbeddingBagCollectionContext,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist
from torchrec.distributed.types import ParameterSharding, QuantizedCommCodecs, ShardingEnv, ShardingType
from torchrec.modules.embedding_configs import PoolingType
from torchrec.sparse.jagged_tensor import KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from packedbag.adapters.torchrec.collection import PackedEmbeddingBagCollection
from packedbag.adapters.torchrec.features import check_features, in_bounds
from packedbag.adapters.torchrec.gradient_wire import return_values
from packedbag.adapters.torchrec.lookup import PackedLookup
from packedbag.adapters.torchrec.pooling import Finish, Pooled
from packedbag.adapters.torchrec.replicated import ReplicatedLookup
from packedbag.adapters.torchrec.sharded_table import ShardedTables, as_table, real_scales, shard_tables, whole_tables
from packedbag.adapters.torchrec.wire import CountCodecs, weighted_codecs
from packedbag.core.errors import ArgumentError
from packedbag.core.footprint import count_bits
from packedbag.core.value_codes import values_of

#: Plans by which a bag's rows are all on one rank: majorities are decided there, and travel as bits.
WHOLE_BAGS = {ShardingType.TABLE_WISE.value, ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value}
#: Plans by which ranks add up what they have of a bag.
BY_ROWS = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value}
#: Behind the sharding type in the name of a group of tables whose majorities travel as bits.
DECIDED = ":majority"


@dataclass
class PackedContext(EmbeddingBagCollectionContext):  # type: ignore[misc]
    """What a batch carries from its input distribution to its output.

    Attributes:
        lengths: (B, F), of the bags of each of the collection's features, in order of the shardings.
        longest: (groups,), the longest bag of each group of tables on any rank.
        agreement: pending while ``longest`` is being agreed upon.
    """

    lengths: torch.Tensor | None = None
    longest: torch.Tensor | None = None
    agreement: Any = field(default=None)

    def record_stream(self, stream: Any) -> None:
        """Tell CUDA's allocator that ``stream`` uses the context."""
        super().record_stream(stream)
        for tensor in (self.lengths, self.longest):
            if tensor is not None:
                tensor.record_stream(stream)


class _AsSums:
    """The collection as TorchRec's constructor is to see it: float tables, summed. Means are taken at the end."""

    def __init__(self, module: PackedEmbeddingBagCollection) -> None:
        self._module = module
        self._configs = [copy.copy(each) for each in module.embedding_bag_configs()]
        for each in self._configs:
            each.pooling = PoolingType.SUM
        self.device = torch.device("cpu")

    def embedding_bag_configs(self) -> Any:
        return self._configs

    def is_weighted(self) -> bool:
        return self._module.is_weighted()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            f"embedding_bags.{each.name}.weight": as_table(each.num_embeddings, each.embedding_dim)
            for each in self._configs
        }

    def named_parameters(self) -> Any:
        return self.state_dict().items()


class ShardedPackedEmbeddingBagCollection(ShardedTables, ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """A `PackedEmbeddingBagCollection` on several ranks; `PackedEmbeddingBagCollectionSharder` makes it.

    Inputs and outputs travel through TorchRec's exchanges; lookups are packed. Train it with
    ``CounterSGD(packed_parameters(model))``: with the same gradients, its words, confidences and row states are those
    that one process would have, bit for bit.
    """

    tables_name = "embedding_bags"

    def __init__(
        self,
        module: PackedEmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        fused_params: dict[str, Any] | None = None,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        module_fqn: str | None = None,
    ) -> None:
        # In a tuple, as no module can be an attribute yet.
        self._source, self._plan, self._codecs = (module,), table_name_to_parameter_sharding, []
        self._group, self._modes = env.process_group, module.modes
        super().__init__(
            _AsSums(module),
            table_name_to_parameter_sharding,
            env,
            fused_params,
            device,
            qcomm_codecs_registry,
            module_fqn,
        )
        self.embedding_bags = torch.nn.ModuleDict(self._tables)
        self.scales = real_scales(module.scales, device)
        self.bounds, self.bits_per_value, self.code = module.bounds, module.bits_per_value, module.code
        self._describe_features()
        del self._source, self._tables

    # How it is built: TorchRec's constructor calls these -------------------------------------------------------

    def create_grouped_sharding_infos(self, *args: Any, **kwargs: Any) -> dict[str, list[EmbeddingShardingInfo]]:
        """Return the tables by plan; those whose majorities travel as bits by themselves."""
        groups: dict[str, list[EmbeddingShardingInfo]] = {}
        for kind, infos in super().create_grouped_sharding_infos(*args, **kwargs).items():
            for info in infos:
                decided = kind in WHOLE_BAGS and self._modes[info.embedding_config.name] == "majority"
                groups.setdefault(kind + DECIDED if decided else kind, []).append(info)
        return groups

    def create_embedding_bag_sharding(
        self,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None = None,
        permute_embeddings: bool = False,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> EmbeddingSharding:
        """Return TorchRec's sharding of these tables, with codecs for counts where there are no weights."""
        (source,) = self._source
        values = source.bits_per_value, source.code
        codecs = None if source.is_weighted() else CountCodecs(qcomm_codecs_registry, *values)
        self._codecs.append(codecs)
        registry = weighted_codecs(qcomm_codecs_registry, *values) if codecs is None else codecs.registry
        return ShardedEmbeddingBagCollection.create_embedding_bag_sharding(
            sharding_infos, env, device, permute_embeddings, registry
        )

    def _create_lookups(self) -> None:
        (source,) = self._source
        weighted = source.is_weighted()
        whole = whole_tables(source.seed, source.embedding_bag_configs(), source.embedding_bags)
        self._tables = shard_tables(whole, self._plan, self._env, self._device)
        for kind, sharding in zip(self._sharding_types, self._embedding_shardings, strict=True):
            mine = sharding._grouped_embedding_configs_per_rank[self._env.rank]
            local = [table for group in mine for table in group.embedding_tables]
            parts = [self._tables[table.name].part_of(table.local_metadata) for table in local]
            features = [table.num_features() for table in local]
            decides = [kind.endswith(DECIDED)] * len(local)
            lookup = PackedLookup(parts, features, decides, weighted=weighted)
            if kind == ShardingType.DATA_PARALLEL.value:
                lookup = ReplicatedLookup(lookup, parts, features, self._group)
            self._lookups.append(lookup)

    def _create_output_dist(self) -> None:
        super()._create_output_dist()
        for each in self._output_dists:
            return_values(each, self._source[0].bits_per_value)

    def init_data_parallel(self) -> None:
        """Leave data-parallel lookups as they are: they exchange rows, where DDP would exchange whole tables."""

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        """Register nothing: `ShardedTable` says what a checkpoint holds."""

    def _describe_features(self) -> None:
        """Note, for each feature as TorchRec orders them, its table's rows and what becomes of its bags."""
        names, rows, groups = [], [], []
        by_name = {each.name: each for each in self._embedding_bag_configs}
        of_table = {}
        for each in self._embedding_bag_configs:
            for feature in each.feature_names:
                of_table[feature] = of_table[f"{feature}@{each.name}"] = each.name
        for number, sharding in enumerate(self._embedding_shardings):
            found = sharding.uncombined_embedding_names()
            names += found
            rows += [by_name[of_table[name]].num_embeddings for name in found]
            groups += [number] * len(found)
        self._flat_names = [name.split("@")[0] for name in names]
        self._flat_rows, self._flat_groups = rows, groups
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        self._places = [first[name] for name in self._embedding_names]
        self._pooled = [
            Pooled(
                name,
                self._modes[of_table[name]],
                dim,
                is_bit=self._sharding_types[groups[first[name]]].endswith(DECIDED),
            )
            for name, dim in zip(self._embedding_names, self._embedding_dims, strict=True)
        ]
        self._scaled = [(of_table[each.name], each.dim) for each in self._pooled] if self.scales else []

    # How a batch goes through it -------------------------------------------------------------------------------

    def create_context(self) -> PackedContext:
        """Return the context of one batch."""
        return PackedContext()

    def input_dist(self, ctx: PackedContext, features: Any) -> Any:
        """Send the indices to the ranks that hold their rows; agree on how long bags are."""
        features = maybe_td_to_kjt(features, None)
        check_features(features, self._flat_names, weighted=self._is_weighted)
        if self._has_uninitialized_input_dist:
            self._create_input_dist(self._flat_names)
            self._keep_order_in_bags()
            self._has_uninitialized_input_dist = False
        with torch.no_grad():
            if features.keys() != self._flat_names:
                features = features.permute([features.keys().index(name) for name in self._flat_names])
            features = in_bounds(features, self._flat_rows, self.bounds)
            ctx.lengths = features.lengths().view(len(self._flat_names), features.stride()).T
            self._agree(ctx)
            awaitables = []
            for input_dist, part in zip(self._input_dists, features.split(self._feature_splits), strict=True):
                awaitables.append(input_dist(part))
                ctx.sharding_contexts.append(
                    EmbeddingShardingContext(
                        batch_size_per_feature_pre_a2a=part.stride_per_key(), variable_batch_per_feature=False
                    )
                )
        return KJTListSplitsAwaitable(awaitables, ctx, self._module_fqn, self._sharding_types)

    def _keep_order_in_bags(self) -> None:
        """Let entries of weighted bags arrive in their order, where ranks share a table's rows.

        FBGEMM sorts them by rank, on a GPU in any order unless they are of sequences. A row that a bag has twice, with
        two weights, would get its gradients in another order, and their sum another last bit.
        """
        if self._is_weighted:
            for each in self._input_dists:
                if isinstance(each, RwSparseFeaturesDist):
                    each._is_sequence = True

    def _agree(self, ctx: PackedContext) -> None:
        """Begin to find the longest bag of each group on any rank: all must send counts of one width."""
        if not any(self._codecs):
            return
        longest = ctx.lengths.new_zeros(len(self._codecs), dtype=torch.int64)
        if len(ctx.lengths):
            groups = torch.tensor(self._flat_groups, device=longest.device)
            longest.scatter_reduce_(0, groups, ctx.lengths.amax(0).to(torch.int64), "amax")
        ctx.longest = longest
        ctx.agreement = dist.all_reduce(longest, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def compute_and_output_dist(self, ctx: PackedContext, dist_input: Any) -> Any:
        """Look bags up, and send each rank those of its samples."""
        widths = [32] * len(self._lookups)
        if ctx.agreement is not None:
            ctx.agreement.wait()
            widths = [count_bits(longest) for longest in ctx.longest.tolist()]
        awaitables = []
        for number, (lookup, dist_of, sharding, features) in enumerate(
            zip(self._lookups, self._output_dists, ctx.sharding_contexts, dist_input, strict=True)
        ):
            sizes = sharding.batch_size_per_rank
            self._check_sizes(number, sizes)
            bags = lookup(features, self._order(number, sizes))
            codecs = self._codecs[number]
            if codecs is not None:
                bits = 1 if self._sharding_types[number].endswith(DECIDED) else widths[number]
                codecs.begin(bits, even=len(set(sizes)) < 2)
            awaitables.append(dist_of(bags, sharding))
        awaitable = EmbeddingBagCollectionAwaitable(
            awaitables=awaitables, embedding_dims=self._embedding_dims, embedding_names=self._embedding_names
        )
        awaitable.callbacks.append(partial(self._finish, lengths=ctx.lengths))
        return awaitable

    def _finish(self, received: KeyedTensor, lengths: torch.Tensor) -> KeyedTensor:
        """Make sums, means and majorities of what has arrived."""
        values = Finish.apply(received.values(), lengths[:, self._places], self._pooled, not self._is_weighted)
        if self._scaled:
            values = values * torch.cat([self.scales[name].expand(dim) for name, dim in self._scaled])
        dims = self._embedding_dims
        if self.bits_per_value > 1:
            values = values_of(values, self.bits_per_value, self.code)
            dims = [dim // self.bits_per_value for dim in dims]
        return KeyedTensor(keys=received.keys(), values=values, length_per_key=dims)

    def _check_sizes(self, number: int, sizes: list[int]) -> None:
        """Raise `ArgumentError` where gloo cannot reduce and scatter: batches of different sizes, by rows."""
        kind = self._sharding_types[number]
        if len(set(sizes)) > 1 and kind in BY_ROWS and _is_gloo(self._group, self._device or torch.device("cpu")):
            advice = "Fill up the smaller ones with samples of empty bags, or use another plan."
            raise ArgumentError(
                "features", f"of {sizes} samples on the ranks", f"of one size, {kind} over gloo", advice
            )

    def _order(self, number: int, sizes: list[int]) -> torch.Tensor | None:
        """Return where the samples that arrive stand among all ranks' samples; None: in that order.

        A table-row-wise plan brings them by place in the node, then by node.
        """
        sharding = self._embedding_shardings[number]
        per_node = getattr(sharding, "_local_size", self._env.world_size)
        if per_node == self._env.world_size or not sizes:
            return None
        nodes = self._env.world_size // per_node
        ranks = [node * per_node + place for place in range(per_node) for node in range(nodes)]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        return torch.cat([torch.arange(ends[rank], ends[rank + 1]) for rank in ranks]).to(self._device or "cpu")

    # What TorchRec asks of it -----------------------------------------------------------------------------------

    def mode_of(self, table: str) -> str:
        """Return how bags of a table are reduced: "sum", "mean" or "majority"."""
        return self._modes[table]

    @property
    def unsharded_module_type(self) -> type[PackedEmbeddingBagCollection]:
        """What it was made of."""
        return PackedEmbeddingBagCollection


def _is_gloo(group: Any, device: torch.device) -> bool:
    """Return whether gloo sends tensors of ``device``; a group may have a backend for each, "cpu:gloo,cuda:nccl"."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return backends.get(device.type) == "gloo"
