"""Foreign interfaces on packed tables: one folder each."""
