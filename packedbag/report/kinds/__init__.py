"""Kinds of tables, one a file: what each costs by formula, and the real thing, to be built and measured."""
