"""Files that hold packed tables: one module a format, and the atomic write they share."""
