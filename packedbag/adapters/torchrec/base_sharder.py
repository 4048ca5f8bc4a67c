"""`PackedSharder`: what the sharders of packed collections have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from packedbag.adapters.torchrec.placement import configs_of
from packedbag.adapters.torchrec.sharded_table import as_table


class PackedSharder(BaseEmbeddingSharder[Any]):  # type: ignore[misc]  # TorchRec has no types
    """Spreads a collection's tables over ranks; a subclass says which collection, what comes of it, by which plans."""

    collection: ClassVar[type[torch.nn.Module]]
    sharded: ClassVar[type[torch.nn.Module]]
    types: ClassVar[tuple[ShardingType, ...]]

    def shard(
        self,
        module: Any,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> Any:
        """Return the module with its tables spread over the ranks as ``params`` says."""
        return self.sharded(module, params, env, self.fused_params, device, self.qcomm_codecs_registry, module_fqn)

    def shardable_parameters(self, module: Any) -> dict[str, torch.nn.Parameter]:
        """Return the tables' shapes, by name."""
        return {each.name: as_table(each.num_embeddings, each.embedding_dim) for each in configs_of(module)}

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the sharding types that packed tables support, on every device."""
        return [each.value for each in self.types]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the name under which plans know the packed lookup."""
        dense = sharding_type == ShardingType.DATA_PARALLEL.value
        return [EmbeddingComputeKernel.DENSE.value if dense else EmbeddingComputeKernel.FUSED.value]

    @property
    def module_type(self) -> type[torch.nn.Module]:
        """What is sharded."""
        return self.collection

    @property
    def sharded_module_type(self) -> type[torch.nn.Module]:
        """What comes of it."""
        return self.sharded
