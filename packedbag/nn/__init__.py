"""Modules that hold packed tables: drop-in replacements for `torch.nn.EmbeddingBag` and `torch.nn.Embedding`."""

from packedbag.nn.embedding import PackedEmbedding
from packedbag.nn.embedding_bag import PackedEmbeddingBag

__all__ = ["PackedEmbedding", "PackedEmbeddingBag"]
