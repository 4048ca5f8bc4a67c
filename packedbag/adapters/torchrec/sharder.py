"""`PackedEmbeddingBagCollectionSharder`: how TorchRec shards packed collections."""

from __future__ import annotations

import torch
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from packedbag.adapters.torchrec.collection import PackedEmbeddingBagCollection
from packedbag.adapters.torchrec.sharded import ShardedPackedEmbeddingBagCollection
from packedbag.adapters.torchrec.sharded_table import as_table

SHARDING_TYPES = (
    ShardingType.DATA_PARALLEL,
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.TABLE_COLUMN_WISE,
    ShardingType.ROW_WISE,
    ShardingType.TABLE_ROW_WISE,
)


class PackedEmbeddingBagCollectionSharder(BaseEmbeddingSharder[PackedEmbeddingBagCollection]):  # type: ignore[misc]
    """Pass one to `DistributedModelParallel`: ``sharders=[PackedEmbeddingBagCollectionSharder()]``.

    Args:
        fused_params: for TorchRec; packed tables take none.
        qcomm_codecs_registry: how gradients are sent, and weighted sums; counts are sent in as few bits as they need.
    """

    def shard(
        self,
        module: PackedEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedPackedEmbeddingBagCollection:
        """Return the module with its tables spread over the ranks as ``params`` says."""
        return ShardedPackedEmbeddingBagCollection(
            module, params, env, self.fused_params, device, self.qcomm_codecs_registry, module_fqn
        )

    def shardable_parameters(self, module: PackedEmbeddingBagCollection) -> dict[str, torch.nn.Parameter]:
        """Return the tables' shapes, by name."""
        configs = module.embedding_bag_configs()
        return {each.name: as_table(each.num_embeddings, each.embedding_dim) for each in configs}

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types that packed tables support, on every device."""
        return [each.value for each in SHARDING_TYPES]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the name under which plans know the packed lookup."""
        dense = sharding_type == ShardingType.DATA_PARALLEL.value
        return [EmbeddingComputeKernel.DENSE.value if dense else EmbeddingComputeKernel.FUSED.value]

    @property
    def module_type(self) -> type[PackedEmbeddingBagCollection]:
        """What is sharded."""
        return PackedEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedPackedEmbeddingBagCollection]:
        """What comes of it."""
        return ShardedPackedEmbeddingBagCollection
