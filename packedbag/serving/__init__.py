"""Serving packed tables without torch: the rows nearest to a query."""

from packedbag.serving.hamming import hamming_topk

__all__ = ["hamming_topk"]
