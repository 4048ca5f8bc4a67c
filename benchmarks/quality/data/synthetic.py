"""Clicks that a known teacher made: of any size, and with a best AUC that no model can pass but by luck."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.data.click_data import BagField, ClickData
from packedbag.recsys import metrics

F64 = npt.NDArray[np.float64]


def load(
    path: str | None = None,
    *,
    examples: int = 200_000,
    fields: int = 6,
    field_rows: int = 10_000,
    bag_length: int = 0,
    rank: int = 4,
    zipf: float = 1.05,
    spread: float = 2.0,
    bias: float = -0.5,
    data_seed: int = 0,
) -> ClickData:
    """Draw data.

    Each id has a latent vector u of ``rank`` normal numbers and a normal weight w. The teacher's logit is a
    factorization machine (Rendle, ICDM 2010): the sum of w over fields plus the sum of <u, u'> over pairs of fields,
    brought to standard deviation ``spread`` over the examples, plus ``bias``. A label is one draw with its sigmoid.

    Args:
        path: not needed.
        examples: N; 80 % train, 10 % tune, 10 % test.
        fields: single-valued fields, of ``field_rows`` ids each; rank r of them is drawn in proportion to r^-zipf.
        bag_length: of a bag field besides, 1 to that many ids, whose vector is their mean; 0: there is none.
        data_seed: of everything.
    """
    generator = np.random.default_rng(data_seed)
    single = np.stack([_zipf(generator, field_rows, zipf, examples) for _ in range(fields)], axis=1)
    ids = np.full((examples, bag_length), -1, np.int64)
    if bag_length:
        lengths = generator.integers(1, bag_length + 1, examples)
        ids = _zipf(generator, field_rows, zipf, examples * bag_length).reshape(ids.shape)
        ids[np.arange(bag_length) >= lengths[:, None]] = -1
    logits = teacher(generator, single, ids, field_rows, rank)
    logits = (logits - logits.mean()) / logits.std() * spread + bias
    probabilities = 1 / (1 + np.exp(-logits))
    labels = (generator.random(examples) < probabilities).astype(np.float32)
    first, second = int(examples * 0.8), int(examples * 0.9)
    best = metrics.score(labels[second:], probabilities[second:], "test")
    return ClickData(
        names=tuple(f"field{number}" for number in range(fields)),
        rows=(field_rows,) * fields,
        single=torch.from_numpy(single),
        bags=(BagField("bag", field_rows, torch.from_numpy(ids)),) if bag_length else (),
        labels=torch.from_numpy(labels),
        train=torch.arange(first),
        valid=torch.arange(first, second),
        test=torch.arange(second, examples),
        best={"auc": best.auc, "log_loss": best.log_loss},
    )


def teacher(
    generator: np.random.Generator, single: npt.NDArray[np.int64], bag: npt.NDArray[np.int64], rows: int, rank: int
) -> F64:
    """Return a logit of each example, (N,): single ids (N, F), a bag (N, L) with -1 for none, L = 0 for no bag."""
    total = np.zeros((len(single), rank))
    squares = np.zeros(len(single))
    logits = np.zeros(len(single))
    for field in range(single.shape[1] + (bag.shape[1] > 0)):
        vectors, weights = generator.standard_normal((rows, rank)), generator.standard_normal(rows)
        if field < single.shape[1]:
            chosen, linear = vectors[single[:, field]], weights[single[:, field]]
        else:
            real = bag >= 0
            count = real.sum(1)
            chosen = (vectors[bag] * real[:, :, None]).sum(1) / count[:, None]
            linear = (weights[bag] * real).sum(1) / count
        total += chosen
        squares += (chosen**2).sum(1)
        logits += linear
    # The sum over pairs of fields is half of what the square of the sum has beyond the sum of squares.
    return logits + 0.5 * ((total**2).sum(1) - squares)


def _zipf(generator: np.random.Generator, rows: int, exponent: float, size: int) -> npt.NDArray[np.int64]:
    """Return ids in [0, rows); which id has which rank is drawn too."""
    cumulative = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative, generator.random(size) * cumulative[-1], side="right")
    return generator.permutation(rows)[np.minimum(ranks, rows - 1)]
