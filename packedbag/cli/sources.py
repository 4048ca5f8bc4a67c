"""From the options of ``packedbag train`` to a source of data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from packedbag.core.errors import ArgumentError
from packedbag.recsys.chunk import Source
from packedbag.recsys.datasets.criteo import Criteo
from packedbag.recsys.datasets.csv_file import CsvFile
from packedbag.recsys.datasets.libfm import LibFm
from packedbag.recsys.datasets.movielens import MovieLens
from packedbag.recsys.split import SPLITS, Split

DATASETS = ("movielens-100k", "csv", "libfm", "criteo")


@dataclass
class DataOptions:
    """The options that describe the data, as given: None is not given.

    Those after ``seed`` are for some data sets only; `ALLOWED` says which.
    """

    data: Path | None
    split: str
    seed: int
    label: str | None = None
    categorical: str | None = None
    bag: str | None = None
    bag_separator: str | None = None
    delimiter: str | None = None
    time: str | None = None
    threshold: float | None = None


ALLOWED = {
    "movielens-100k": (),
    "csv": ("label", "categorical", "bag", "bag_separator", "delimiter", "time", "threshold"),
    "libfm": ("threshold",),
    "criteo": (),
}


def open_source(dataset: str, options: DataOptions) -> tuple[Source, str | Split]:
    """Return the source, and the split that its rows need.

    Raises:
        ArgumentError: an option is missing, wrong, or not for this data set.
        DataError: the data cannot be had or read.
    """
    if dataset not in DATASETS:
        raise ArgumentError("DATASET", repr(dataset), f"one of {', '.join(DATASETS)}")
    if options.split not in SPLITS:
        raise ArgumentError("--split", repr(options.split), f"one of {', '.join(SPLITS)}")
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise ArgumentError("--threshold", options.threshold, "a finite number")
    special = [f.name for f in fields(options)][3:]
    for name in special:
        if getattr(options, name) is not None and name not in ALLOWED[dataset]:
            where = ", ".join(d for d in DATASETS if name in ALLOWED[d])
            raise ArgumentError(f"--{name.replace('_', '-')}", f"given with {dataset}", f"left out; it is for {where}")
    if dataset == "movielens-100k":
        movielens = MovieLens(options.data, split=options.split, seed=options.seed)
        return movielens, movielens.split
    if options.data is None:
        raise ArgumentError("--data", "missing", f"the path of the {dataset} file")
    if dataset == "libfm":
        return LibFm(options.data, threshold=options.threshold), options.split
    if dataset == "criteo":
        return Criteo(options.data), options.split
    if options.label is None:
        raise ArgumentError("--label", "missing", "the name of the column that holds the label")
    source = CsvFile(
        options.data,
        label=options.label,
        categorical=_names(options.categorical),
        bags=_names(options.bag),
        time=options.time,
        threshold=options.threshold,
        delimiter="," if options.delimiter is None else options.delimiter,
        bag_separator=" " if options.bag_separator is None else options.bag_separator,
    )
    return source, options.split


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
