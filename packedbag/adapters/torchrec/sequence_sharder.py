"""`PackedEmbeddingCollectionSharder`: how TorchRec shards packed collections of sequences."""

from __future__ import annotations

from torchrec.distributed.types import ShardingType

from packedbag.adapters.torchrec.base_sharder import PackedSharder
from packedbag.adapters.torchrec.sequence import PackedEmbeddingCollection
from packedbag.adapters.torchrec.sharded_sequence import ShardedPackedEmbeddingCollection


class PackedEmbeddingCollectionSharder(PackedSharder):
    """Pass one to `DistributedModelParallel`: ``sharders=[PackedEmbeddingCollectionSharder()]``.

    Args:
        fused_params: for TorchRec; packed tables take none.
        qcomm_codecs_registry: how gradients are sent; rows are sent in one bit a weight.
    """

    collection = PackedEmbeddingCollection
    sharded = ShardedPackedEmbeddingCollection
    types = (
        ShardingType.DATA_PARALLEL,
        ShardingType.TABLE_WISE,
        ShardingType.COLUMN_WISE,
        ShardingType.ROW_WISE,
    )
