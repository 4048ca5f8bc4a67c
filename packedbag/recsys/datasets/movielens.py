"""MovieLens-100k: 100,000 ratings of 1,682 films by 943 users, with who they are and what they liked before."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import DataError
from packedbag.recsys.chunk import Chunk, Field, Tokens, parse_label
from packedbag.recsys.datasets.recbole_wheel import fetch
from packedbag.recsys.split import TRAIN, RandomSplit, Split, time_cuts

INSIDE_WHEEL = "recbole/dataset_example/ml-100k/"
FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")

#: A rating of at least this is a positive label, "liked".
LIKED = 4.0
#: The history holds at most this many films, the latest.
HISTORY = 50

I64 = npt.NDArray[np.int64]


class MovieLens:
    """The ratings as rows of user, item, age, gender, occupation, genres and history; the label is rating >= 4.

    The history of a row is the films its user liked before, from training rows with a strictly smaller
    timestamp, the latest `HISTORY` of them: anything else would hold labels that are to be predicted.

    Args:
        data: a folder with the files ``ml-100k.*``, or RecBole's wheel; None fetches that wheel.
        split: "random", by ``seed``, or "time".

    Attributes:
        split: the split that the history was made for; give it to `packedbag.recsys.dataset.Dataset`.
    """

    name = "movielens-100k"
    in_memory = True
    fields = (
        Field("user"),
        Field("item"),
        Field("age"),
        Field("gender"),
        Field("occupation"),
        Field("genres", bag=True),
        Field("history", bag=True),
    )

    def __init__(self, data: str | os.PathLike[str] | None = None, *, split: str = "random", seed: int = 0) -> None:
        path = fetch() if data is None else Path(data)
        ratings, items, users = (_Table(path, name) for name in FILES)
        labels = np.array([parse_label(v, LIKED, ratings.path, n) for v, n in ratings.column("rating")], np.float32)
        times = np.array([_number(v, ratings.path, n) for v, n in ratings.column("timestamp")], np.float64)
        self.split: Split = RandomSplit(seed) if split == "random" else time_cuts([times])
        parts = self.split.parts(np.arange(len(labels), dtype=np.int64), times)
        user = [v for v, _ in ratings.column("user_id")]
        item = [v for v, _ in ratings.column("item_id")]
        who = {name: users.lookup("user_id", name) for name in ("age", "gender", "occupation")}
        genres_of = items.lookup("item_id", "class")
        for key, known, file in ((user, who["age"], users), (item, genres_of, items)):
            for number, token in enumerate(key):
                if token not in known:
                    line = ratings.numbers[number]
                    raise DataError(ratings.path, line, f"names {token!r}, which {Path(file.path).name} does not list")
        offsets, positions = history(user, times, labels, parts)
        columns = [Tokens(user), Tokens(item)]
        columns += [Tokens([values[u] for u in user]) for values in who.values()]
        columns += [_bags([genres_of[i].split() for i in item]), Tokens([item[p] for p in positions], offsets)]
        self._chunk = Chunk(0, labels, tuple(columns), times)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows as one chunk, in the order of the file."""
        yield self._chunk


def history(
    users: list[str], times: npt.NDArray[np.float64], labels: npt.NDArray[np.float32], parts: npt.NDArray[np.uint8]
) -> tuple[I64, I64]:
    """Find the rows a user liked earlier, for every row.

    Args:
        users: n names.
        times: (n,), any unit.
        labels: (n,), 1 where the row was liked.
        parts: (n,), TRAIN, VALID or TEST of `packedbag.recsys.split`.

    Returns:
        offsets (n + 1,) int64 and positions (K,) int64: the history of row i is
        ``positions[offsets[i]:offsets[i + 1]]``, oldest first: training rows of the same user whose label is 1
        and whose time is strictly smaller than row i's.
    """
    of_user: dict[str, list[int]] = {}
    usable = (labels == 1) & (parts == TRAIN)
    for row in np.lexsort((np.arange(len(users)), times)):
        if usable[row]:
            of_user.setdefault(users[row], []).append(int(row))
    earlier = {user: (np.array(rows, np.int64), times[rows]) for user, rows in of_user.items()}
    nothing = (np.empty(0, np.int64), np.empty(0, np.float64))
    found: list[I64] = []
    for row, user in enumerate(users):
        rows, when = earlier.get(user, nothing)
        end = int(np.searchsorted(when, times[row], side="left"))
        found.append(rows[max(end - HISTORY, 0) : end])
    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum([len(rows) for rows in found], out=offsets[1:])
    return offsets, np.concatenate([*found, nothing[0]])


class _Table:
    """One of RecBole's atomic files: tabs between columns, a first line of ``name:type``."""

    def __init__(self, source: Path, name: str) -> None:
        self.path, text = _read(source, name)
        lines = text.split("\n")
        self.header = [column.split(":")[0] for column in lines[0].rstrip("\r").split("\t")]
        self.rows: list[list[str]] = []
        self.numbers: list[int] = []
        for number, line in enumerate(lines[1:], start=2):
            values = line.rstrip("\r").split("\t")
            if values == [""]:
                continue
            if len(values) != len(self.header):
                raise DataError(
                    self.path, number, f"has {len(values)} columns where the first line names {len(self.header)}"
                )
            self.rows.append(values)
            self.numbers.append(number)
        if not self.rows:
            raise DataError(self.path, None, "has no rows")

    def _place(self, name: str) -> int:
        if name not in self.header:
            raise DataError(self.path, 1, f"names no column {name!r}; its columns are {', '.join(self.header)}")
        return self.header.index(name)

    def column(self, name: str) -> list[tuple[str, int]]:
        """Return the values of a column, each with its line number."""
        place = self._place(name)
        return [(row[place], number) for row, number in zip(self.rows, self.numbers, strict=True)]

    def lookup(self, key: str, value: str) -> dict[str, str]:
        """Return one column by another."""
        places = self._place(key), self._place(value)
        return {row[places[0]]: row[places[1]] for row in self.rows}


def _read(source: Path, name: str) -> tuple[str, str]:
    """Return where the file ``name`` was found, for messages, and its text."""
    try:
        if source.is_dir():
            where = source / name
            where = where if where.exists() else source / INSIDE_WHEEL / name
            raw = where.read_bytes()
        else:
            where = source / INSIDE_WHEEL / name
            with zipfile.ZipFile(source) as archive:
                raw = archive.read(INSIDE_WHEEL + name)
    except zipfile.BadZipFile as error:
        raise DataError(source, None, f"is not a whole wheel ({error})", "Fetch it again.") from None
    except KeyError:
        raise DataError(source, None, f"holds no {INSIDE_WHEEL}{name}") from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise DataError(
            where if source.is_dir() else source, None, problem, "--data takes a folder or a wheel."
        ) from None
    try:
        text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8", newline="").read()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(where, line, f"is not UTF-8 text ({error.reason})") from None
    return str(where), text


def _number(text: str, path: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(path, line, f"the timestamp is {text!r}, which is not a number")
    return value


def _bags(rows: list[list[str]]) -> Tokens:
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Tokens([token for row in rows for token in row], ends)
