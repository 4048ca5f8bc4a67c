"""CSV files with named columns."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from packedbag.core.errors import ArgumentError, DataError
from packedbag.recsys.chunk import Chunk, Field, Tokens, parse_label
from packedbag.recsys.datasets.lines import identity, read_lines

#: Rows parsed at a time.
CHUNK_ROWS = 8192


class CsvFile:
    """A CSV file whose first line names the columns.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed.
        label: the column of the label.
        categorical: columns that hold one id a row.
        bags: columns that hold any number of ids, separated by ``bag_separator``.
        time: a numeric column to split by; None splits by position.
        threshold: see `packedbag.recsys.chunk.parse_label`.
        delimiter: what separates columns.
    """

    in_memory = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        label: str,
        categorical: Sequence[str] = (),
        bags: Sequence[str] = (),
        time: str | None = None,
        threshold: float | None = None,
        delimiter: str = ",",
        bag_separator: str = " ",
    ) -> None:
        if not categorical and not bags:
            raise ArgumentError(
                "categorical", "empty, and so is bag", "at least one column", "Pass --categorical a,b or --bag c."
            )
        names = [*categorical, *bags]
        for name in (label, *([time] if time else ())):
            if name in names:
                raise ArgumentError("categorical", f"one that contains {name!r}", "free of the label and the time")
        if len(set(names)) != len(names):
            raise ArgumentError("categorical", ",".join(names), "free of repetitions, those of bag included")
        if len(delimiter) != 1:
            raise ArgumentError("delimiter", repr(delimiter), "a single character", r"A tab is $'\t' in bash.")
        if not bag_separator:
            raise ArgumentError("bag_separator", "empty", "at least one character")
        self.fields = (*(Field(n) for n in categorical), *(Field(n, bag=True) for n in bags))
        self._path, self._label, self._time, self._threshold = path, label, time, threshold
        self._delimiter, self._separator = delimiter, bag_separator

    @property
    def name(self) -> str:
        """The format, the file's name and size, and what else decides a row's meaning."""
        read = f"label {self._label!r}, threshold {self._threshold}, bag separator {self._separator!r}"
        return f"csv {identity(self._path)}, {read}"

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order, `CHUNK_ROWS` at a time."""
        reader = csv.reader(read_lines(self._path), delimiter=self._delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise DataError(self._path, None, "is empty", "The first line must name the columns.")
            places = [self._place(header, field.name) for field in self.fields]
            label = self._place(header, self._label)
            time = None if self._time is None else self._place(header, self._time)
            yield from self._rows(reader, len(header), places, label, time)
        except csv.Error as error:
            raise DataError(self._path, reader.line_num, f"is not valid CSV ({error})") from None

    def _rows(
        self, reader: Iterator[list[str]], width: int, places: list[int], label: int, time: int | None
    ) -> Iterator[Chunk]:
        first = 0
        draft = _Draft(self.fields)
        for row in reader:
            line = reader.line_num  # type: ignore[attr-defined]
            if len(row) != width:
                if not row:  # an empty line, such as the last
                    continue
                raise DataError(self._path, line, f"has {len(row)} columns where the first line names {width}")
            draft.labels.append(parse_label(row[label], self._threshold, self._path, line))
            if time is not None:
                draft.times.append(self._number(row[time], line))
            for field, place, tokens, ends in zip(self.fields, places, draft.text, draft.ends, strict=True):
                if field.bag:
                    tokens.extend(part for part in row[place].split(self._separator) if part)
                    ends.append(len(tokens))
                else:
                    tokens.append(row[place])
            if len(draft.labels) == CHUNK_ROWS:
                yield draft.chunk(first)
                first += CHUNK_ROWS
                draft = _Draft(self.fields)
        if draft.labels:
            yield draft.chunk(first)
        elif not first:
            raise DataError(self._path, None, "has no rows")

    def _place(self, header: list[str], name: str) -> int:
        if header.count(name) > 1:
            raise DataError(self._path, 1, f"names the column {name!r} more than once")
        if name not in header:
            raise DataError(self._path, 1, f"names no column {name!r}; its columns are {', '.join(header)}")
        return header.index(name)

    def _number(self, text: str, line: int) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise DataError(self._path, line, f"column {self._time!r} holds {text!r}, which is not a number")
        return value


class _Draft:
    """A chunk while it is filled."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self.labels = array("f")
        self.times = array("d")
        self.text: list[list[str]] = [[] for _ in fields]
        self.ends = [array("q", [0]) for _ in fields]

    def chunk(self, first_row: int) -> Chunk:
        """Return what was filled in."""
        columns = tuple(
            Tokens(text, np.array(ends, np.int64) if field.bag else None)
            for field, text, ends in zip(self.fields, self.text, self.ends, strict=True)
        )
        times = np.array(self.times, np.float64) if self.times else None
        return Chunk(first_row, np.array(self.labels, np.float32), columns, times)
