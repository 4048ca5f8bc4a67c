"""The data sets of the bench, as tensors."""
