"""The layout of the Criteo click logs: a label, 13 integers, 26 ids, separated by tabs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np

from packedbag.core.errors import DataError
from packedbag.recsys.chunk import Chunk, Field, Tokens, parse_label
from packedbag.recsys.datasets.lines import identity, read_lines

INTEGERS = 13
CATEGORIES = 26
COLUMNS = 1 + INTEGERS + CATEGORIES

#: Rows parsed at a time: 39 short strings each, some 30 MB.
CHUNK_ROWS = 8192


def bucket(value: int) -> str:
    """Return the id of a count's bucket: counts of like magnitude share one.

    Counts up to 2 keep their own; above, the square of the logarithm is rounded down, which gives about ten
    buckets to the first hundred counts and a few more to each further power of ten.

    Source:
        The "3 Idiots" solution of the 2014 Criteo challenge (Juan, Zhuang, Chin): log squared, rounded down.

    >>> [bucket(v) for v in (-1, 0, 1, 2, 3, 100, 100_000)]
    ['-1', '0', '1', '2', 'b1', 'b21', 'b132']
    """
    return str(value) if value <= 2 else f"b{int(math.log(value) ** 2)}"


class Criteo:
    """A file of the Criteo layout; an empty value is an id of its own.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed. Rows are in order of time.
    """

    in_memory = False
    fields = (
        *(Field(f"I{i}") for i in range(1, INTEGERS + 1)),
        *(Field(f"C{i}") for i in range(1, CATEGORIES + 1)),
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._buckets: dict[str, str] = {"": ""}

    @property
    def name(self) -> str:
        """The format, and the file's name and size."""
        return f"criteo {identity(self._path)}"

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order, `CHUNK_ROWS` at a time."""
        first, labels = 0, list[float]()
        text: list[list[str]] = [[] for _ in self.fields]
        for number, line in enumerate(read_lines(self._path), start=1):
            values = line.rstrip("\r\n").split("\t")
            if len(values) != COLUMNS:
                raise DataError(
                    self._path, number, f"has {len(values)} columns; the Criteo layout has {COLUMNS}, tabs between them"
                )
            labels.append(parse_label(values[0], None, self._path, number))
            for i in range(1, INTEGERS + 1):
                values[i] = self._bucket(values[i], number)
            for tokens, value in zip(text, values[1:], strict=True):
                tokens.append(value)
            if len(labels) == CHUNK_ROWS:
                yield Chunk(first, np.array(labels, np.float32), tuple(map(Tokens, text)))
                first, labels, text = first + CHUNK_ROWS, [], [[] for _ in self.fields]
        if labels:
            yield Chunk(first, np.array(labels, np.float32), tuple(map(Tokens, text)))
        elif not first:
            raise DataError(self._path, None, "has no rows")

    def _bucket(self, text: str, line: int) -> str:
        known = self._buckets.get(text)
        if known is not None:
            return known
        try:
            found = bucket(int(text))
        except ValueError:
            raise DataError(self._path, line, f"holds {text!r} where an integer belongs") from None
        if len(self._buckets) < CHUNK_ROWS:  # small counts make up nearly all values
            self._buckets[text] = found
        return found
