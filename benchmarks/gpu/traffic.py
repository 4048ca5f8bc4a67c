"""The bytes that a call must move, in the sectors in which a GPU's memory is read."""

from __future__ import annotations

from benchmarks.shapes import Shape
from packedbag.core.layout import words_per_row

SECTOR = 32
INDEX_BYTES = 4


def row_sectors(row_bytes: int) -> int:
    """Return the sectors that a row takes at least."""
    return -(-row_bytes // SECTOR)


def call_bytes(shape: Shape, row_bytes: int, output_bytes: int) -> int:
    """Return what one call moves: its indices once, whole sectors for each entry's row, its output.

    Args:
        row_bytes: of a row of the table.
        output_bytes: of what a bag gives.
    """
    entries = shape.bags * shape.length
    return entries * (INDEX_BYTES + SECTOR * row_sectors(row_bytes)) + shape.bags * output_bytes


def sum_bytes(shape: Shape) -> int:
    """Return what packedbag's sum to fp32 moves."""
    return call_bytes(shape, 4 * words_per_row(shape.dim), 4 * shape.dim)


def majority_bytes(shape: Shape) -> int:
    """Return what packedbag's majority to packed words moves."""
    width = 4 * words_per_row(shape.dim)
    return call_bytes(shape, width, width)


def float_bytes(shape: Shape, size: int) -> int:
    """Return what a bag of numbers of ``size`` bytes moves."""
    return call_bytes(shape, size * shape.dim, size * shape.dim)
