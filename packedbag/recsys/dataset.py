"""A source, its split and its ids, as batches in an order that a resumed run can find again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError
from packedbag.recsys.chunk import Chunk, Field, Source, Tokens
from packedbag.recsys.ids import HashedIds, Ids, MappedIds
from packedbag.recsys.rows import Column, Rows, join
from packedbag.recsys.split import PARTS, TRAIN, RandomSplit, Split, time_cuts

#: Rows that are shuffled together. A file is read in its order; what is held is one such window.
WINDOW_ROWS = 1 << 17


@dataclass(frozen=True)
class Order:
    """The order of one epoch: rows are shuffled within each window by (seed, epoch, window)."""

    seed: int
    epoch: int


class Dataset:
    """Batches of the training, validation and test rows of a source.

    Nothing but the id maps and one window of rows is held, unless the source is in memory anyway.

    Args:
        source: where rows come from.
        split: "random" (by ``seed``) or "time", or a split made already.
        seed: of the random split.
        hash_rows: None to map ids (`MappedIds`), or the rows of every table (`HashedIds`).
        unseen_rows, min_count: see `MappedIds`.
        window_rows: rows shuffled together.
    """

    def __init__(
        self,
        source: Source,
        split: str | Split,
        *,
        seed: int = 0,
        hash_rows: int | None = None,
        unseen_rows: int = 16,
        min_count: int = 2,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self.source = source
        self.window_rows = window_rows
        self._hash_rows = hash_rows
        self._split = split
        self._seed = seed
        self._cache: dict[int, list[Rows]] = {}
        self.ids: tuple[Ids, ...] = tuple(
            MappedIds(unseen_rows=unseen_rows, min_count=min_count) if hash_rows is None else HashedIds(hash_rows)
            for _ in source.fields
        )
        #: Rows of each part; None until they have been counted.
        self.counts: tuple[int, int, int] | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The source's fields; ``ids`` and the columns of `Rows` follow them."""
        return self.source.fields

    def prepare(self, progress: Callable[[int], None] | None = None) -> None:
        """Read the source as often as it takes to split it and to number its ids.

        A split by time reads it once to find the cuts; mapped ids take another pass. Hashed ids with a random
        split take none.

        Args:
            progress: called with the number of rows read so far.

        Raises:
            DataError: the file is unreadable, cut short or mislabelled.
            ArgumentError: a part would be empty.
        """
        if self._split == "time":
            self._split = time_cuts(chunk.clock() for chunk in self._reported(progress))
        elif self._split == "random":
            self._split = RandomSplit(self._seed)
        elif isinstance(self._split, str):
            raise ArgumentError("split", repr(self._split), "'random' or 'time'")
        if not any(ids.needs_learning for ids in self.ids):
            return
        counts = np.zeros(3, np.int64)
        for chunk in self._reported(progress):
            parts = self._parts(chunk)
            counts += np.bincount(parts, minlength=3)
            train = parts == TRAIN
            for ids, tokens in zip(self.ids, chunk.columns, strict=True):
                ids.learn(_selected(tokens, train))
        for ids in self.ids:
            ids.finish()
        self.counts = (int(counts[0]), int(counts[1]), int(counts[2]))
        for name, count in zip(PARTS, self.counts, strict=True):
            if not count:
                raise ArgumentError(
                    "split", f"one without {name} rows ({int(counts.sum())} rows in all)", "of more rows"
                )

    def batches(self, part: int, batch_size: int, *, order: Order | None = None, skip: int = 0) -> Iterator[Rows]:
        """Yield batches of about ``batch_size`` rows.

        A window is cut into equal batches, so that a short last batch does not disturb batch norm. A training
        window (``order`` given) of a single row is left out: batch norm needs two.

        Args:
            part: TRAIN, VALID or TEST.
            batch_size: the rows wanted in a batch.
            order: the order of an epoch, or None for the order of the file.
            skip: batches to leave out at the start, read but not made: the position of a resumed run.
        """
        for number, window in enumerate(self._windows(part)):
            if order is not None and len(window) < 2:
                continue
            pieces = max(round(len(window) / batch_size), 1)
            if skip >= pieces:
                skip -= pieces
                continue
            rows = np.arange(len(window), dtype=np.int64)
            if order is not None:
                np.random.default_rng((order.seed, order.epoch, number)).shuffle(rows)
            for piece in np.array_split(rows, pieces)[skip:]:
                yield window.take(piece)
            skip = 0

    def fingerprint(self) -> str:
        """Return a digest of what decides the meaning of a checkpoint: fields, split, ids, window."""
        parts = [self.source.name, repr(self.fields), repr(self._split), repr(self.counts), str(self.window_rows)]
        parts += [ids.fingerprint() for ids in self.ids]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _reported(self, progress: Callable[[int], None] | None) -> Iterator[Chunk]:
        for chunk in self.source.chunks():
            yield chunk
            if progress is not None:
                progress(chunk.first_row + len(chunk))

    def _parts(self, chunk: Chunk) -> npt.NDArray[np.uint8]:
        assert not isinstance(self._split, str), "prepare() comes first"
        rows = np.arange(chunk.first_row, chunk.first_row + len(chunk), dtype=np.int64)
        return self._split.parts(rows, chunk.clock())

    def _windows(self, part: int) -> Iterator[Rows]:
        if part in self._cache:
            yield from self._cache[part]
            return
        kept: list[Rows] = []
        for window in self._read_windows(part):
            if self.source.in_memory:
                kept.append(window)
            yield window
        if self.source.in_memory:
            self._cache[part] = kept

    def _read_windows(self, part: int) -> Iterator[Rows]:
        held: list[Rows] = []
        size = 0
        for chunk in self.source.chunks():
            chosen = np.flatnonzero(self._parts(chunk) == part)
            if not len(chosen):
                continue
            held.append(self._encode(chunk, chosen))
            size += len(chosen)
            if size >= self.window_rows:
                yield join(held)
                held, size = [], 0
        if held:
            yield join(held)

    def _encode(self, chunk: Chunk, rows: npt.NDArray[np.int64]) -> Rows:
        columns = []
        for ids, tokens in zip(self.ids, chunk.columns, strict=True):
            offsets = np.arange(len(chunk) + 1, dtype=np.int64) if tokens.offsets is None else tokens.offsets
            # Positions are chosen first: a validation pass must not hash the ids of all training rows.
            chosen = Column(np.arange(len(tokens.text), dtype=np.int64), offsets, tokens.weights).take(rows)
            text = [tokens.text[position] for position in chosen.indices]
            columns.append(Column(ids.encode(text), chosen.offsets, chosen.weights))
        return Rows(chunk.labels[rows], tuple(columns))


def _selected(tokens: Tokens, rows: npt.NDArray[np.bool_]) -> list[str]:
    """Return the ids of the rows where ``rows`` (n,) is True."""
    mask = rows if tokens.offsets is None else np.repeat(rows, np.diff(tokens.offsets))
    return [token for token, wanted in zip(tokens.text, mask, strict=True) if wanted]
