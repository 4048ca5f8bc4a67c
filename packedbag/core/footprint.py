"""What a packed table costs, by formula: bytes of a part of it in memory, and bytes that a batch sends to and fro.

``packedbag plan`` and the estimates for TorchRec's planner both count with these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from packedbag.core.layout import BITS_PER_WORD, words_per_row

#: Bytes of a word, of an int32 and of a float32.
WORD = INT = FLOAT = 4
#: Rows that 32-bit indices can number.
INT32_ROWS = 1 << 31
#: In how many bits a count may be sent; `FLOAT_BITS` where none of them holds it.
COUNT_BITS = (1, 2, 4, 8, 16)
FLOAT_BITS = 32
#: Bytes that ranks which share rows' columns tell each other of a gradient: 32 partial sums of squares, and the mean.
STATISTICS = FLOAT * (BITS_PER_WORD + 1)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a part of a table.

    Attributes:
        table: the words.
        planes: bits 2 to k of each weight, the optimizer's.
        row_state: a word a row, the optimizer's.
    """

    table: int
    planes: int
    row_state: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.table + self.planes + self.row_state


def footprint(rows: int, columns: int, bits: int | None = None, *, row_state: bool = True) -> Footprint:
    """Return what a part of a table takes: the same whatever ``bits_per_value`` and ``code`` are.

    A counter of ``bits`` bits a weight has ``bits`` - 1 planes beside the table. The counter of a binary value of p
    weights has p * ``bits`` bits, p of them the table: the others fill as many planes.

    Args:
        rows, columns: of the part.
        bits: of a weight in training, 1 to 8, the table included; None: it serves, and there is no optimizer.
        row_state: whether the optimizer has a word a row, for ``adaptivity`` "ema" or "adagrad".

    >>> footprint(1000, 100, bits=8)
    Footprint(table=16000, planes=112000, row_state=4000)
    >>> footprint(1000, 100).total
    16000
    """
    table = WORD * words_per_row(columns) * rows
    if bits is None:
        return Footprint(table, 0, 0)
    return Footprint(table, (bits - 1) * table, WORD * rows if row_state else 0)


@dataclass(frozen=True)
class Traffic:
    """Bytes that pass in one step between a part of a table and the ranks whose samples look it up.

    Attributes:
        indices: ids of the part's rows, and how many each bag has.
        forward: bags or rows, from the part to the samples.
        gradients: of these, from the samples to the part.
        statistics: what the ranks that share a row's columns tell each other before they update it.
    """

    indices: int
    forward: int
    gradients: int
    statistics: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.indices + self.forward + self.gradients + self.statistics


def traffic(
    *,
    columns: int,
    bags: float,
    entries: float,
    index: int,
    bits: int,
    gradient: float = FLOAT,
    pooled: bool = True,
    shared_gradients: int = 0,
    shared_rows: int = 0,
) -> Traffic:
    """Return what passes for ``bags`` bags, rounded up to bytes.

    Args:
        columns: of the part.
        bags: bags, or sequences; they may be a mean, as ``entries`` may.
        entries: ids of the part's rows in them.
        index: bytes of an id, with its weight if it has one.
        bits: of a value forward, see `count_bits`.
        gradient: bytes of a column's gradient; of columns that make values, its part of those of the value.
        pooled: whether bags are reduced before they are sent; else a row is sent for each id.
        shared_gradients: of rows to update that have columns elsewhere too, see `distinct_gradients`.
        shared_rows: these rows; one rank keeps their state words, and tells the others.

    >>> traffic(columns=64, bags=10, entries=200, index=4, bits=8)
    Traffic(indices=840, forward=640, gradients=2560, statistics=0)
    """
    lines = bags if pooled else entries
    return Traffic(
        indices=math.ceil(index * entries + INT * bags),
        forward=math.ceil(lines * line_bytes(columns, bits)),
        gradients=math.ceil(lines * columns * gradient),
        statistics=STATISTICS * shared_gradients + WORD * shared_rows,
    )


def index_bytes(most_rows: int) -> int:
    """Return the bytes of an id on the wire where the largest table of a collection has ``most_rows``."""
    return INT if most_rows < INT32_ROWS else 2 * INT


def count_bits(longest: float) -> int:
    """Return in how many bits a count of bags of at most ``longest`` ids is sent.

    >>> [count_bits(longest) for longest in (1, 2, 20, 255, 256, 70_000)]
    [1, 2, 8, 8, 16, 32]
    """
    return next((bits for bits in COUNT_BITS if longest < 1 << bits), FLOAT_BITS)


def line_bytes(columns: int, bits: int) -> int:
    """Return the bytes of a bag or row on the wire: ``columns`` values of ``bits``, filled up to whole elements.

    Values of up to 8 bits travel in bytes, wider ones in 32-bit words: these are what NCCL and gloo both add.

    >>> line_bytes(100, 1), line_bytes(100, 8), line_bytes(101, 16)
    (13, 100, 204)
    """
    element = 8 if bits <= 8 else 32
    return -(-columns // (element // bits)) * (element // 8)


def distinct_rows(rows: int, entries: float) -> int:
    """Return how many of ``rows`` rows ``entries`` ids are expected to hit, each row being as likely.

    >>> distinct_rows(1_000_000, 40_960)
    40132
    """
    if rows <= 1:
        return min(rows, math.ceil(entries))
    # 1 - (1 - 1 / rows)^entries, exact where it is tiny.
    return round(rows * -math.expm1(entries * math.log1p(-1 / rows)))


def distinct_gradients(rows: int, entries: float, bags: float) -> int:
    """Return how many gradients the rows that ``entries`` ids in ``bags`` bags hit are expected to have between them.

    A row that occurs once has its bag's gradient; one that occurs more often has one of its own.

    >>> distinct_gradients(1_000_000, 40_960, 2048)
    2864
    """
    hit = distinct_rows(rows, entries)
    once = entries * math.exp((entries - 1) * math.log1p(-1 / rows)) if rows > 1 else 0.0
    return min(hit, math.ceil(bags) + max(0, hit - round(once)))


def column_parts(dim: int, ranks: int, least: int = BITS_PER_WORD, multiple: int = BITS_PER_WORD) -> list[int]:
    """Return the columns of each part where ``ranks`` share a table's columns: whole words, at most one part a rank.

    Args:
        dim: D.
        ranks: how many may have a part.
        least: columns that a part has at least; the last may have fewer.
        multiple: of columns where parts begin, whole words: `packedbag.core.value_codes.column_multiple`.

    >>> column_parts(200, 4, least=128), column_parts(200, 2), column_parts(64, 8)
    ([128, 72], [128, 72], [32, 32])
    """
    pieces = -(-dim // multiple)
    block = multiple * max(-(-pieces // ranks), -(-least // multiple))
    return [min(block, dim - first) for first in range(0, dim, block)]


#: How ``packedbag plan`` may spread a table over ranks.
SHARDINGS = ("table", "row", "column")


def largest_part(rows: int, dim: int, ranks: int, sharding: str, multiple: int = BITS_PER_WORD) -> tuple[int, int]:
    """Return rows and columns of the largest part of a table: on one rank, or spread by rows or columns.

    Args:
        rows, dim: V and D.
        ranks: how many may have a part.
        sharding: one of `SHARDINGS`.
        multiple: of columns where parts begin, as in `column_parts`.

    >>> [largest_part(1001, 200, 4, sharding) for sharding in SHARDINGS]
    [(1001, 200), (251, 200), (1001, 64)]
    """
    if sharding == "row":
        return -(-rows // ranks), dim
    return (rows, dim) if sharding == "table" else (rows, column_parts(dim, ranks, multiple=multiple)[0])
