"""MovieLens-1M as a click task: liked (4-5) against disliked (1-2), 739,012 rows.

The data are for research and may not be passed on: they are no part of this tree. ``ml1m.npz`` holds arrays made from
them; `load` says which.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.data.click_data import BagField, ClickData, MissingDataError

FILE = "ml1m.npz"
ENVIRONMENT = "PACKEDBAG_ML1M"
NAMES = ("user", "item", "gender", "age", "occupation", "zip", "year")
ITEM = NAMES.index("item")
NO_GENRE = 65535
DROPPED, LIKED = 1, 2


def load(path: str | None = None) -> ClickData:
    """Read the arrays.

    ``X`` (N, 7) holds ids that count through all fields, field f from ``field_offsets[f]``; ``item_genres`` (items, 6)
    counts on from there; ``rating_class`` is 0, 1 or 2, of which 1, a rating of 3, is dropped, as is usual
    (Song et al., "AutoInt", CIKM 2019); ``split`` is fixed: 0 trains, 1 tunes, 2 tests.

    Args:
        path: ``ml1m.npz`` or its folder; None takes it from $PACKEDBAG_ML1M.

    Raises:
        MissingDataError: there is no such file.
    """
    given = path or os.environ.get(ENVIRONMENT)
    if not given:
        raise MissingDataError(f"ml-1m needs {FILE}: pass --data-path, or set {ENVIRONMENT}")
    where = Path(given)
    where = where / FILE if where.is_dir() else where
    if not where.exists():
        raise MissingDataError(f"ml-1m: there is no {where}")
    with np.load(where) as arrays:
        kept = arrays["rating_class"] != DROPPED
        ids = arrays["X"][kept].astype(np.int64)
        labels = (arrays["rating_class"][kept] == LIKED).astype(np.float32)
        split = arrays["split"][kept]
        offsets = arrays["field_offsets"].astype(np.int64)
        genres = arrays["item_genres"].astype(np.int64)
    rows = np.diff(offsets)
    genres = np.where(genres == NO_GENRE, -1, genres - offsets[len(NAMES)])
    train, valid, test = (torch.from_numpy(np.flatnonzero(split == part)) for part in range(3))
    return ClickData(
        names=NAMES,
        rows=tuple(int(count) for count in rows[: len(NAMES)]),
        single=torch.from_numpy(ids - offsets[: len(NAMES)]),
        bags=(BagField("genres", int(rows[len(NAMES)]), torch.from_numpy(genres), by=ITEM),),
        labels=torch.from_numpy(labels),
        train=train,
        valid=valid,
        test=test,
    )
