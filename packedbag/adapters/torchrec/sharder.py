"""`PackedEmbeddingBagCollectionSharder`: how TorchRec shards packed collections."""

from __future__ import annotations

from torchrec.distributed.types import ShardingType

from packedbag.adapters.torchrec.base_sharder import PackedSharder
from packedbag.adapters.torchrec.collection import PackedEmbeddingBagCollection
from packedbag.adapters.torchrec.sharded import ShardedPackedEmbeddingBagCollection


class PackedEmbeddingBagCollectionSharder(PackedSharder):
    """Pass one to `DistributedModelParallel`: ``sharders=[PackedEmbeddingBagCollectionSharder()]``.

    Args:
        fused_params: for TorchRec; packed tables take none.
        qcomm_codecs_registry: how gradients are sent, and weighted sums; counts are sent in as few bits as they need.
    """

    collection = PackedEmbeddingBagCollection
    sharded = ShardedPackedEmbeddingBagCollection
    types = (
        ShardingType.DATA_PARALLEL,
        ShardingType.TABLE_WISE,
        ShardingType.COLUMN_WISE,
        ShardingType.TABLE_COLUMN_WISE,
        ShardingType.ROW_WISE,
        ShardingType.TABLE_ROW_WISE,
    )
