"""The data that `packedbag train` reads: one module a format."""
