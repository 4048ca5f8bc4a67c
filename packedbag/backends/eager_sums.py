"""Sums in a fixed order, and the cutting of long work into pieces, in stock torch operations.

Every function here adds float32 numbers in the order that DESIGN 2.1 prescribes; products are rounded before
they are added, because each operation is a call of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

import torch

from packedbag.core.layout import BITS_PER_WORD

Tensor = torch.Tensor

# Elements of the largest temporary: small enough for a CPU's second-level cache to help, large enough that the
# cost of calling torch is lost in the work; on a GPU, large enough to fill it (16 MB of float32).
ELEMENTS_CPU = 1 << 19
ELEMENTS_GPU = 1 << 22


def rows_at_once(device: torch.device, columns: int) -> int:
    """Return how many rows of ``columns`` elements a temporary may have."""
    return max(1, (ELEMENTS_CPU if device.type == "cpu" else ELEMENTS_GPU) // max(1, columns))


def pieces(ends: Tensor, most: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Cut groups of entries into pieces of at most ``most`` entries and ``most`` groups.

    Args:
        ends: (G + 1,) int64; group g is the entries ``ends[g]`` to ``ends[g + 1]``, and ``ends[0]`` is 0.
        most: at least 1.

    Yields:
        first group, last group + 1, and the spans (first entry, last entry + 1) that make them up: one span,
        except for a group of more than ``most`` entries, which comes alone.
    """
    groups, total = len(ends) - 1, int(ends[-1])
    if groups <= most and total <= most:
        if groups:
            yield 0, groups, [(0, total)]
        return
    at: list[int] = ends.tolist()
    first = 0
    while first < groups:
        last = min(bisect_right(at, at[first] + most) - 1, first + most)
        if last > first:
            yield first, last, [(at[first], at[last])]
        else:
            last = first + 1
            yield first, last, [(cut, min(cut + most, at[last])) for cut in range(at[first], at[last], most)]
        first = last


def lane_sum(x: Tensor) -> Tensor:
    """Sum (R, D) float32 over the columns in 32 lanes: words ascending, then lanes +16, +8, +4, +2, +1."""
    lanes = torch.zeros((len(x), BITS_PER_WORD), dtype=torch.float32, device=x.device)
    for column in range(0, x.shape[1], BITS_PER_WORD):
        word = x[:, column : column + BITS_PER_WORD]
        lanes[:, : word.shape[1]] += word
    for half in (16, 8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


def root(x: Tensor) -> Tensor:
    """Return the correctly rounded square roots of float32 numbers.

    torch's own on a CPU are one ulp off for about a sixth of them (2.13, vector math). Rounding the root in float64 to
    float32 is exact: 53 bits are more than twice 24 and two.
    """
    return x.to(torch.float64).sqrt_().to(torch.float32)


def sum_in_order(total: Tensor, starts: Tensor, lengths: Tensor, term: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Add to every row of ``total`` its terms, one after another.

    Args:
        total: (R, D) float32, changed in place.
        starts: (R,) int64: row r's terms are those of the entries ``starts[r]`` and the ``lengths[r] - 1`` next.
        term: called with the entries (A,) and the rows (A,) they go to; returns (A, D) float32.
    """
    if not len(total):
        return
    # Longest first: the rows that still have a term at step i are then the first so many.
    by_length = torch.argsort(lengths, descending=True)
    starts, ordered = starts[by_length], total.index_select(0, by_length)
    ended = lengths.bincount().cumsum(0)
    active: list[int] = (len(total) - ended).tolist()
    for step, count in enumerate(active[:-1]):
        ordered[:count] += term(starts[:count] + step, by_length[:count])
    total.index_copy_(0, by_length, ordered)
