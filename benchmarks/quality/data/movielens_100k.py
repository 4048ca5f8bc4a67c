"""MovieLens-100k with the fields, the split and the ids of `packedbag train movielens-100k`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from benchmarks.quality.data.click_data import BagField, ClickData, MissingDataError
from packedbag.core.errors import DataError
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.datasets.movielens import MovieLens
from packedbag.recsys.rows import Column, join
from packedbag.recsys.split import TEST, TRAIN, VALID


def load(path: str | None = None, *, split_seed: int = 0) -> ClickData:
    """Read the ratings; the label is "liked", 4 or 5 of 5.

    Args:
        path: a folder with ``ml-100k.*``, or RecBole's wheel; None fetches that wheel, as the command does.
        split_seed: of the random split, and so of the histories.

    Raises:
        MissingDataError: they could be neither read nor fetched.
    """
    try:
        source = MovieLens(path, split="random", seed=split_seed)
    except DataError as error:
        raise MissingDataError(f"movielens-100k: {error}") from error
    dataset = Dataset(source, source.split, seed=split_seed)
    dataset.prepare()
    parts = [join(list(dataset.batches(part, 1 << 30))) for part in (TRAIN, VALID, TEST)]
    rows = join(parts)
    ends = np.cumsum([0, *map(len, parts)])
    positions = [torch.arange(begin, end) for begin, end in pairwise(ends)]
    fields = list(zip(dataset.fields, dataset.ids, rows.columns, strict=True))
    singles = [(field, ids, column) for field, ids, column in fields if not field.bag]
    return ClickData(
        names=tuple(field.name for field, _, _ in singles),
        rows=tuple(ids.rows for _, ids, _ in singles),
        single=torch.from_numpy(np.stack([column.indices for _, _, column in singles], axis=1)),
        bags=tuple(BagField(field.name, ids.rows, padded(column)) for field, ids, column in fields if field.bag),
        labels=torch.from_numpy(rows.labels),
        train=positions[0],
        valid=positions[1],
        test=positions[2],
    )


def padded(column: Column) -> torch.Tensor:
    """Return bags as (n, longest) int64, -1 after their end."""
    lengths = np.diff(column.offsets)
    ids = np.full((len(lengths), max(int(lengths.max(initial=0)), 1)), -1, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = column.indices
    return torch.from_numpy(ids)
