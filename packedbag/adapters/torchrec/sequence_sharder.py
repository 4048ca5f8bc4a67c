"""`PackedEmbeddingCollectionSharder`: how TorchRec shards packed collections of sequences."""

from __future__ import annotations

import torch
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from packedbag.adapters.torchrec.sequence import PackedEmbeddingCollection
from packedbag.adapters.torchrec.sharded_sequence import ShardedPackedEmbeddingCollection
from packedbag.adapters.torchrec.sharded_table import as_table

#: What TorchRec has for sequences.
SHARDING_TYPES = (
    ShardingType.DATA_PARALLEL,
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.ROW_WISE,
)


class PackedEmbeddingCollectionSharder(BaseEmbeddingSharder[PackedEmbeddingCollection]):  # type: ignore[misc]
    """Pass one to `DistributedModelParallel`: ``sharders=[PackedEmbeddingCollectionSharder()]``.

    Args:
        fused_params: for TorchRec; packed tables take none.
        qcomm_codecs_registry: how gradients are sent; rows are sent in one bit a weight.
    """

    def shard(
        self,
        module: PackedEmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedPackedEmbeddingCollection:
        """Return the module with its tables spread over the ranks as ``params`` says."""
        return ShardedPackedEmbeddingCollection(
            module, params, env, self.fused_params, device, self.qcomm_codecs_registry, module_fqn
        )

    def shardable_parameters(self, module: PackedEmbeddingCollection) -> dict[str, torch.nn.Parameter]:
        """Return the tables' shapes, by name."""
        return {each.name: as_table(each.num_embeddings, each.embedding_dim) for each in module.embedding_configs()}

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types that packed tables of sequences support, on every device."""
        return [each.value for each in SHARDING_TYPES]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the name under which plans know the packed lookup."""
        dense = sharding_type == ShardingType.DATA_PARALLEL.value
        return [EmbeddingComputeKernel.DENSE.value if dense else EmbeddingComputeKernel.FUSED.value]

    @property
    def module_type(self) -> type[PackedEmbeddingCollection]:
        """What is sharded."""
        return PackedEmbeddingCollection

    @property
    def sharded_module_type(self) -> type[ShardedPackedEmbeddingCollection]:
        """What comes of it."""
        return ShardedPackedEmbeddingCollection
