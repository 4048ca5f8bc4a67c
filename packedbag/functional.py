"""`packedbag.functional`: bags, lookups and distances as functions of plain tensors."""

from packedbag.ops.functional import embedding, embedding_bag, hamming_distances

__all__ = ["embedding", "embedding_bag", "hamming_distances"]
