"""A bench of learning: how good a click model gets from each kind of table, and what its training holds."""
