"""How the oracle reads counters out of packed words and planes, and writes them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.backends.counter_rule import CounterRule
from packedbag.core.layout import pack_array, unpack_array, view_words

I64 = npt.NDArray[np.int64]


def read_counters(words: Any, planes: Any, rule: CounterRule) -> I64:
    """Return the counters of rows, (R, `CounterRule.counters`), each in -2^(b-1)..2^(b-1) - 1, b its bits.

    Args:
        words: (R, W); planes: (R, W, k - 1): what stands in them, `CounterRule` says.
        rule: says which columns a counter has.
    """
    bit = unpack_array(words, rule.embedding_dim)
    layers = [unpack_array(planes[:, :, p], rule.embedding_dim).astype(np.int64) for p in range(rule.bits - 1)]
    group = rule.columns_per_counter
    if group == 1:
        m = sum((layer << p for p, layer in enumerate(layers)), start=np.zeros(bit.shape, np.int64))
        return np.where(bit, m, -1 - m)
    digits = np.stack([*layers, bit.astype(np.int64)], axis=1).reshape(len(bit), rule.bits, rule.counters, group)
    digits = digits.transpose(0, 2, 1, 3).reshape(len(bit), rule.counters, rule.counter_bits)
    numbers: I64 = (digits << np.arange(rule.counter_bits)).sum(axis=2) - 2 ** (rule.counter_bits - 1)
    return numbers


def packed_counters(v: I64, rule: CounterRule) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """Return the words (R, W) and planes (R, W, k - 1) that hold counters: the inverse of `read_counters`."""
    group = rule.columns_per_counter
    if group == 1:
        m = np.where(v >= 0, v, -1 - v)
        layers = [m >> p & 1 for p in range(rule.bits - 1)] + [v >= 0]
    else:
        digits = (v + 2 ** (rule.counter_bits - 1))[:, :, None] >> np.arange(rule.counter_bits) & 1
        layers = [part.reshape(len(v), rule.embedding_dim) for part in np.split(digits, rule.bits, axis=2)]
    *packed, words = [pack_array(layer.astype(np.bool_)) for layer in layers]
    planes = np.empty((*words.shape, rule.bits - 1), np.int32)
    for p, plane in enumerate(packed):
        planes[:, :, p] = view_words(plane, "int32")
    return words, planes
