"""Which data sets there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.quality.data import ml1m, movielens_100k, synthetic
from benchmarks.quality.data.click_data import ClickData

DATA: dict[str, Callable[..., ClickData]] = {
    "ml-1m": ml1m.load,
    "movielens-100k": movielens_100k.load,
    "synthetic": synthetic.load,
}


def load(name: str, path: str | None, options: Mapping[str, Any]) -> ClickData:
    """Return a data set; `benchmarks.quality.data.click_data.MissingDataError` where it is not here."""
    if name not in DATA:
        raise ValueError(f"data is {name!r}; it must be one of {', '.join(DATA)}")
    return DATA[name](path, **options)
