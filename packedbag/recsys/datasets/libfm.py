"""libFM files: ``label index:value index:value ...`` on each line."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator

import numpy as np

from packedbag.core.errors import DataError
from packedbag.recsys.chunk import Chunk, Field, Tokens, parse_label
from packedbag.recsys.datasets.lines import identity, read_lines

#: Rows parsed at a time.
CHUNK_ROWS = 8192

#: Values are float32: a larger one would become infinite, and every prediction of its batch NaN.
LARGEST = float(np.finfo(np.float32).max)


class LibFm:
    """A libFM file, one weighted bag a row: the values are the weights of the rows that the indices name.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed.
        threshold: see `packedbag.recsys.chunk.parse_label`.
    """

    in_memory = False
    fields = (Field("features", bag=True, weighted=True),)

    def __init__(self, path: str | os.PathLike[str], *, threshold: float | None = None) -> None:
        self._path = path
        self._threshold = threshold

    @property
    def name(self) -> str:
        """The format, the file's name and size, and the threshold."""
        return f"libfm {identity(self._path)}, threshold {self._threshold}"

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order, `CHUNK_ROWS` at a time; empty lines and those starting with # are no rows."""
        first = 0
        labels, ends, values, text = array("f"), array("q", [0]), array("f"), list[str]()
        for number, line in enumerate(read_lines(self._path), start=1):
            parts = line.split()
            if not parts or parts[0].startswith("#"):
                continue
            labels.append(parse_label(parts[0], self._threshold, self._path, number))
            for part in parts[1:]:
                index, value = self._entry(part, number)
                text.append(index)
                values.append(value)
            ends.append(len(text))
            if len(labels) == CHUNK_ROWS:
                yield _chunk(first, labels, ends, values, text)
                first += CHUNK_ROWS
                labels, ends, values, text = array("f"), array("q", [0]), array("f"), []
        if labels:
            yield _chunk(first, labels, ends, values, text)
        elif not first:
            raise DataError(self._path, None, "has no rows")

    def _entry(self, part: str, line: int) -> tuple[str, float]:
        index, colon, value = part.partition(":")
        try:
            number = float(value)
            whole = int(index) >= 0
        except ValueError:
            whole, number = False, math.nan
        if not colon or not whole or not abs(number) <= LARGEST:
            raise DataError(self._path, line, f"holds {part!r} where index:value belongs")
        return index, number


def _chunk(first: int, labels: array[float], ends: array[int], values: array[float], text: list[str]) -> Chunk:
    tokens = Tokens(text, np.array(ends, np.int64), np.array(values, np.float32))
    return Chunk(first, np.array(labels, np.float32), (tokens,))
