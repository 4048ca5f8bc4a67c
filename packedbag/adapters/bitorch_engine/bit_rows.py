"""`BitRows`: rows and columns of bits inside packed words, read and written as bools, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from packedbag.core.layout import BITS_PER_WORD, view_words, words_per_row
from packedbag.nn.convert import CHUNK_WEIGHTS, clear_tail
from packedbag.ops.functional import embedding_bag, hamming_distances
from packedbag.ops.packing import pack, unpack

#: Rows that are counted at once: their indices take 8 MB.
CHUNK_ROWS = 1 << 20


class BitRows:
    """A rectangle of bits: all rows of ``words``, and the columns that ``columns`` names.

    Nothing here makes more than `CHUNK_WEIGHTS` bools at once, except `read`, which makes what it is asked for.

    Args:
        words: (R, W) int32, a view of the table: what is written here is written there.
        embedding_dim: D of the whole table.
        columns: which of the D columns; the step is positive.
    """

    def __init__(self, words: torch.Tensor, embedding_dim: int, columns: range) -> None:
        self.words = words
        self.embedding_dim = embedding_dim
        self.columns = columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.words.shape[0], len(self.columns)

    @property
    def is_whole(self) -> bool:
        """Whether these are all columns, so that words can be used as they are."""
        return self.columns == range(self.embedding_dim)

    def pieces(self) -> Iterator[slice]:
        """Yield the rows in slices of about `CHUNK_WEIGHTS` weights."""
        rows, step = self.words.shape[0], max(1, CHUNK_WEIGHTS // max(1, self.embedding_dim))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def read(self, rows: slice | torch.Tensor | None = None) -> torch.Tensor:
        """Return the bits of ``rows`` (default: all) as bool, (rows, columns)."""
        if rows is None and not self.is_whole:  # whole words are unpacked: of few columns many bools too many
            out = torch.empty(self.shape, dtype=torch.bool, device=self.words.device)
            for piece in self.pieces():
                out[piece] = self.read(piece)
            return out
        covering, columns = self._covering()
        words = covering if rows is None else covering[rows]
        if not len(columns):
            return torch.empty((words.shape[0], 0), dtype=torch.bool, device=words.device)
        bits: torch.Tensor = unpack(words, columns.stop)
        return bits[:, columns.start :: columns.step]

    def write(self, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
        """Set the bits of ``rows`` to ``values``, bool (rows, columns); of a row that is named twice, to the last."""
        covering, columns = self._covering()
        if not len(columns):
            return
        step = max(1, CHUNK_WEIGHTS // self.embedding_dim)
        if isinstance(rows, torch.Tensor) and len(rows) > step:
            for some, part in zip(rows.split(step), values.split(step), strict=True):
                self.write(some, part)
            return
        if self.is_whole:
            self.words[rows] = view_words(pack(values), "int32")
            return
        bits = unpack(covering[rows], covering.shape[1] * BITS_PER_WORD)
        bits[:, columns.start : columns.stop : columns.step] = values
        covering[rows] = view_words(pack(bits), "int32")

    def rewrite(self, change: Callable[[torch.Tensor, slice], object]) -> None:
        """Let ``change`` alter the bits in place: it gets bools (rows, columns), and which rows they are."""
        for rows in self.pieces():
            bits = self.read(rows)
            change(bits, rows)
            self.write(rows, bits)

    def packed(self) -> torch.Tensor:
        """Return words (R, ceil(columns / 32)) int32 of these columns alone: the table's own, if these are all."""
        if self.is_whole:
            return self.words
        rows, columns = self.shape
        out = self.words.new_zeros((rows, words_per_row(columns)))
        if columns:
            for piece in self.pieces():
                out[piece] = view_words(pack(self.read(piece)), "int32")
        return out

    def count(self, dims: tuple[int, ...]) -> torch.Tensor:
        """Count the bits that are set, over ``dims``, (0,), (1,) or (0, 1), which stay with size 1; int64."""
        words, (rows, columns) = self.packed(), self.shape
        if not rows or not columns:
            return words.new_zeros([1 if axis in dims else size for axis, size in enumerate(self.shape)]).long()
        if dims == (1,):  # how far a row is from zeros
            return hamming_distances(torch.zeros_like(words[:1]), words, embedding_dim=columns).t().long()
        total = words.new_zeros((1, columns), dtype=torch.int64)
        for start in range(0, rows, CHUNK_ROWS):  # a bag of all rows: its sum is ones - zeros
            bag = torch.arange(start, min(start + CHUNK_ROWS, rows), device=words.device).unsqueeze(0)
            sums = embedding_bag(bag, words, embedding_dim=columns, bounds="unchecked", output_dtype=torch.int32)
            total += (sums.long() + bag.shape[1]) // 2
        return total.sum(1, keepdim=True) if 1 in dims else total

    def _covering(self) -> tuple[torch.Tensor, range]:
        """Return the words that hold these columns, and the columns counted from the first of them."""
        first, step, count = self.columns.start // BITS_PER_WORD, self.columns.step, len(self.columns)
        if not count:
            return self.words[:, :0], range(0)
        last = self.columns[-1] // BITS_PER_WORD
        start = self.columns.start - first * BITS_PER_WORD
        return self.words[:, first : last + 1], range(start, start + (count - 1) * step + 1, step)


def words_like(value: torch.Tensor | bool | float, shape: tuple[int, int], device: torch.device) -> torch.Tensor | None:
    """Return words that broadcast against a table's like the bools ``value`` would against its bits, or None.

    Args:
        value: a number, or a bool tensor of at most two dimensions that broadcasts to ``shape``.
        shape: (R, D) of the table.

    Returns:
        (R or 1, W or 1) int32; where the last dimension is 1, a word is all ones or all zeros, tail bits included.
        None where ``value`` does not broadcast, or is no bool.
    """
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(bool(value), device=device)
    if value.dtype != torch.bool or value.ndim > 2:
        return None
    rows, columns = (1,) * (2 - value.ndim) + tuple(value.shape)
    if rows not in (1, shape[0]) or columns not in (1, shape[1]):
        return None
    value = value.to(device).reshape(rows, columns)
    if columns != shape[1] or columns == 1:
        return -value.to(torch.int32)
    words = torch.empty((rows, words_per_row(columns)), dtype=torch.int32, device=device)
    if not columns:
        return words
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        words[start : start + step] = view_words(pack(value[start : start + step]), "int32")
    return words


def whole_rows(words: torch.Tensor, embedding_dim: int) -> BitRows:
    """Return all columns of ``words`` (R, W), whose tail bits are cleared first."""
    if words.numel():
        clear_tail(words, embedding_dim)
    return BitRows(words, embedding_dim, range(embedding_dim))
