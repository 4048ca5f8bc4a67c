"""`packedbag.functional`: bags and lookups as functions of plain tensors."""

from packedbag.ops.functional import embedding, embedding_bag

__all__ = ["embedding", "embedding_bag"]
