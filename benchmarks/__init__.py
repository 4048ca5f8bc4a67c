"""packedbag beside its peers, on the same tables and indices, in one process: ``python -m benchmarks``."""
