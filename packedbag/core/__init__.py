"""The vocabulary every other module shares: layout, bags, modes, bounds, errors. NumPy only."""
