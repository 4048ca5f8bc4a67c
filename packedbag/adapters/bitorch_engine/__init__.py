"""bitorch-engine's binary embeddings on packed words: change one import, and train on stock PyTorch."""

from packedbag.adapters.bitorch_engine.layer import BinaryEmbeddingBag, BinaryEmbeddingBagForward
from packedbag.adapters.bitorch_engine.lookup import BinaryEmbeddingCuda
from packedbag.adapters.bitorch_engine.parameter import BinaryEmbeddingParameter, sparse_update_embedding_qweight

__all__ = [
    "BinaryEmbeddingBag",
    "BinaryEmbeddingBagForward",
    "BinaryEmbeddingCuda",
    "BinaryEmbeddingParameter",
    "sparse_update_embedding_qweight",
]
