"""The kinds of tables that are compared; each file one kind, with the optimizer that nobody else ships."""
