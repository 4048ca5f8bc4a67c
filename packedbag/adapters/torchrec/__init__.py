"""Packed tables on TorchRec: collections, their sharding, their checkpoints. See docs/distributed.md.

Importing this needs TorchRec; without it, the error says how to install it.
"""

from __future__ import annotations

from packedbag.adapters.torchrec_requirement import import_torchrec

import_torchrec()

from packedbag.adapters.torchrec.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from packedbag.adapters.torchrec.collection import PackedEmbeddingBagCollection  # noqa: E402
from packedbag.adapters.torchrec.estimates import PackedPerfEstimator, PackedStorageEstimator, packed_planner  # noqa: E402
from packedbag.adapters.torchrec.export import export, gathered  # noqa: E402
from packedbag.adapters.torchrec.sequence import PackedEmbeddingCollection  # noqa: E402
from packedbag.adapters.torchrec.sequence_sharder import PackedEmbeddingCollectionSharder  # noqa: E402
from packedbag.adapters.torchrec.sharded import ShardedPackedEmbeddingBagCollection  # noqa: E402
from packedbag.adapters.torchrec.sharded_sequence import ShardedPackedEmbeddingCollection  # noqa: E402
from packedbag.adapters.torchrec.sharder import PackedEmbeddingBagCollectionSharder  # noqa: E402

__all__ = [
    "PackedEmbeddingBagCollection",
    "PackedEmbeddingBagCollectionSharder",
    "PackedEmbeddingCollection",
    "PackedEmbeddingCollectionSharder",
    "PackedPerfEstimator",
    "PackedStorageEstimator",
    "ShardedPackedEmbeddingBagCollection",
    "ShardedPackedEmbeddingCollection",
    "export",
    "find_checkpoint",
    "gathered",
    "load_checkpoint",
    "packed_planner",
    "save_checkpoint",
]
