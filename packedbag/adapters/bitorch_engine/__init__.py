"""bitorch-engine's binary embeddings on packed words: change one import, and train on stock PyTorch."""

from packedbag.adapters.bitorch_engine.checkpoint import read_checkpoint, write_checkpoint
from packedbag.adapters.bitorch_engine.conversion import convert
from packedbag.adapters.bitorch_engine.diode_mix import DiodeMix
from packedbag.adapters.bitorch_engine.layer import BinaryEmbeddingBag, BinaryEmbeddingBagForward
from packedbag.adapters.bitorch_engine.lookup import BinaryEmbeddingCuda
from packedbag.adapters.bitorch_engine.parameter import BinaryEmbeddingParameter, sparse_update_embedding_qweight
from packedbag.adapters.bitorch_engine.strategies import BitFlip, VoteFlip

__all__ = [
    "BinaryEmbeddingBag",
    "BinaryEmbeddingBagForward",
    "BinaryEmbeddingCuda",
    "BinaryEmbeddingParameter",
    "BitFlip",
    "DiodeMix",
    "VoteFlip",
    "convert",
    "read_checkpoint",
    "sparse_update_embedding_qweight",
    "write_checkpoint",
]
