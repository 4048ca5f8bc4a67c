"""The first bits of a table: a function of (seed, table, row, word), so that no plan of sharding changes them."""

from __future__ import annotations

import numpy as np
import torch

from packedbag.backends.eager_bits import clear_tail
from packedbag.core.layout import words_per_row

#: Words that are drawn at once, 8 MB.
PIECE = 1 << 21
#: Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LOW64 = (1 << 64) - 1


def _mixed(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(FIRST)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(SECOND)
    return numbers ^ (numbers >> np.uint64(31))


def draw_words(words: torch.Tensor, *, seed: int, table: int, first_row: int, first_word: int, width: int) -> None:
    """Fill a part of a table with its first bits, in place; tail bits are not cleared.

    Args:
        words: (V, W) int32, the part.
        seed: of the collection.
        table: its position there.
        first_row, first_word: where the part begins.
        width: words in a row of the whole table.
    """
    key = int(_mixed(np.array([(seed + GAMMA * (table + 1)) & LOW64], np.uint64))[0])
    step = max(1, PIECE // max(1, words.shape[1]))
    columns = np.arange(first_word, first_word + words.shape[1], dtype=np.uint64)
    for start in range(0, len(words), step):
        stop = min(start + step, len(words))
        rows = np.arange(first_row + start, first_row + stop, dtype=np.uint64)
        places = rows[:, None] * np.uint64(width) + columns
        bits = _mixed(places * np.uint64(GAMMA) + np.uint64(key))
        drawn = torch.from_numpy((bits >> np.uint64(32)).astype(np.uint32).view(np.int32))
        words[start:stop].copy_(drawn)


def draw_table(words: torch.Tensor, embedding_dim: int, *, seed: int, table: int) -> None:
    """Fill a whole table, (V, W) int32, with its first bits, in place; one on the meta device has none."""
    if not words.is_meta:
        width = words_per_row(embedding_dim)
        draw_words(words, seed=seed, table=table, first_row=0, first_word=0, width=width)
        clear_tail(words, embedding_dim)
