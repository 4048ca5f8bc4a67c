"""From the ids of a file, which are text, to the rows of a table."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError

#: CRC-32 has 32 bits: more rows could not all be reached.
MAX_HASHED_ROWS = 1 << 32


def hashed(token: str, rows: int) -> int:
    """Return a row in ``[0, rows)`` for ``token``, the same in every process and on every machine.

    The finalizer spreads CRC-32's bits: without it, ids that differ in their last digit alone would share the
    remainder of their difference.

    Source:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (the mixing function).

    >>> 0 <= hashed("242", 1000) < 1000
    True
    """
    x = zlib.crc32(token.encode("utf-8", "surrogateescape"))
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return (x ^ (x >> 16)) % rows


class MappedIds:
    """Gives each id that is frequent enough in the training rows a row of its own.

    The others, and ids never seen, share ``unseen_rows`` rows at the end of the table, by hash. Ids rarer than
    ``min_count`` are sent there so that those rows are trained.

    >>> ids = MappedIds(unseen_rows=4, min_count=1)
    >>> ids.learn(["b", "a", "b"])
    >>> ids.finish()
    >>> ids.rows, ids.encode(["a", "b"]).tolist(), bool(ids.encode(["new"])[0] >= 2)
    (6, [1, 0], True)
    """

    def __init__(self, *, unseen_rows: int, min_count: int) -> None:
        if unseen_rows < 1:
            raise ArgumentError("unseen_rows", unseen_rows, "at least 1", "Ids never seen need a row.")
        if unseen_rows > MAX_HASHED_ROWS:
            raise ArgumentError("unseen_rows", unseen_rows, f"at most {MAX_HASHED_ROWS}")
        if min_count < 1:
            raise ArgumentError("min_count", min_count, "at least 1")
        self.unseen_rows = unseen_rows
        self.min_count = min_count
        self.needs_learning = True
        self._counts: Counter[str] = Counter()
        self._rows: dict[str, int] = {}

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        return len(self._rows) + self.unseen_rows

    def learn(self, tokens: Iterable[str]) -> None:
        """Count ids of training rows."""
        self._counts.update(tokens)

    def finish(self) -> None:
        """Give rows to the ids learnt, in the order in which they were first seen."""
        frequent = (token for token, count in self._counts.items() if count >= self.min_count)
        self._rows = {token: row for row, token in enumerate(frequent)}
        self._counts = Counter()

    def encode(self, tokens: list[str]) -> npt.NDArray[np.int64]:
        """Return the row of each id, (N,) int64."""
        known = len(self._rows)
        get = self._rows.get
        rows = np.fromiter((get(token, -1) for token in tokens), np.int64, len(tokens))
        for position in np.flatnonzero(rows < 0):
            rows[position] = known + hashed(tokens[position], self.unseen_rows)
        return rows

    def tokens(self) -> list[str]:
        """Return the ids that have a row of their own, in the order of the rows."""
        return list(self._rows)

    def fingerprint(self) -> str:
        """Return a digest that changes when any id gets another row."""
        digest = hashlib.sha256(f"mapped {self.unseen_rows}".encode())
        for token in self._rows:
            digest.update(token.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


class HashedIds:
    """Gives every id a row by hash: nothing to learn or to store, but ids may share a row.

    >>> HashedIds(1000).encode(["7", "8"]).tolist() == [hashed("7", 1000), hashed("8", 1000)]
    True
    """

    def __init__(self, rows: int) -> None:
        if not 1 <= rows <= MAX_HASHED_ROWS:
            raise ArgumentError("hash_rows", rows, f"in 1..{MAX_HASHED_ROWS}")
        self.rows = rows
        self.needs_learning = False

    def learn(self, tokens: Iterable[str]) -> None:
        """Do nothing: the row of an id does not depend on others."""

    def finish(self) -> None:
        """Do nothing, as `learn`."""

    def encode(self, tokens: list[str]) -> npt.NDArray[np.int64]:
        """Return the row of each id, (N,) int64."""
        return np.fromiter((hashed(token, self.rows) for token in tokens), np.int64, len(tokens))

    def tokens(self) -> list[str]:
        """Return an empty list: no id has a row of its own."""
        return []

    def fingerprint(self) -> str:
        """Return a digest that changes with the number of rows."""
        return f"hashed {self.rows}"


Ids = MappedIds | HashedIds
