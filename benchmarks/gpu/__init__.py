"""packedbag beside its peers on one GPU, same tables and indices, one process: ``python -m benchmarks.gpu``."""
