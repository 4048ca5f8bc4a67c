"""Which packed tables fit a given memory: by formula, for each number of bits in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from packedbag.core.footprint import (
    FLOAT,
    FLOAT_BITS,
    Traffic,
    count_bits,
    distinct_gradients,
    distinct_rows,
    footprint,
    index_bytes,
    largest_part,
    traffic,
)
from packedbag.core.layout import MAX_EMBEDDING_DIM
from packedbag.core.thermometer import check_bits_per_value
from packedbag.core.value_codes import (
    BINARY_GROUPS,
    COUNTER_BITS,
    check_code,
    check_counter_bits,
    column_multiple,
    columns_per_counter,
)
from packedbag.report.kinds.char import Char
from packedbag.report.kinds.floats import Floats
from packedbag.report.kinds.kind import INDEX, Costs, Kind, Load, Shape
from packedbag.report.kinds.packed import Packed
from packedbag.report.quantity import MOST


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Args:
        rows: V, of the whole table.
        dim: D.
        bits: k, or None: any. A counter has 8 bits at most: of a binary value, p * k of them.
        memory: bytes of one machine or GPU.
        reserve: bytes of it that the tables may not take.
        gpus: ranks, machines or GPUs, that the table is spread over.
        load: the batch of all ranks. Each shard is counted with all of it, which is more than its part.
        row_state: whether the optimizer has a word a row.
        sharding: one of `packedbag.core.footprint.SHARDINGS`: the whole "table" on one rank, or an even part of it on
            each, by "row", or by "column" in whole words.
        bits_per_value: p, weights that make one value.
        code: how they make it, one of `packedbag.core.value_codes.CODES`.

    Raises:
        ArgumentError: D is no multiple of p, there is no such code, or so many bits have no counter.
    """

    rows: int
    dim: int
    bits: int | None
    memory: int
    reserve: int
    gpus: int = 1
    load: Load = field(default_factory=Load)
    row_state: bool = True
    sharding: str = "row"
    bits_per_value: int = 1
    code: str = "thermometer"

    def __post_init__(self) -> None:
        check_bits_per_value(self.bits_per_value, self.dim, "sum", "float32")
        check_code(self.code, self.bits_per_value)
        if self.bits is not None:
            check_counter_bits(self.bits, self.bits_per_value, self.code)

    @property
    def all_bits(self) -> range:
        """The bits that a weight can have in training, the most first: more of them learn better."""
        return range(COUNTER_BITS // columns_per_counter(self.bits_per_value, self.code), 0, -1)

    @property
    def multiple(self) -> int:
        """What the first column of each part is a multiple of."""
        return column_multiple(self.bits_per_value, self.code)

    def packed(self, bits: int) -> Packed:
        """Return the kind of table that is wished for, with ``bits`` in training."""
        return Packed(bits, row_state=self.row_state, bits_per_value=self.bits_per_value, code=self.code)

    @property
    def budget(self) -> int:
        """Bytes for the tables of a shard."""
        return self.memory - self.reserve

    def shard(self, gpus: int | None = None) -> int:
        """Return the rows of the largest shard, of ``gpus`` or as many as there are."""
        return self.part(gpus=gpus).rows

    def part(self, *, rows: int | None = None, dim: int | None = None, gpus: int | None = None) -> Shape:
        """Return the largest shard, of the table as it is wished for or with other numbers."""
        return Shape(*largest_part(rows or self.rows, dim or self.dim, gpus or self.gpus, self.sharding, self.multiple))

    @property
    def most_gpus(self) -> int:
        """The ranks that can have a part of the table."""
        return {"table": 1, "row": self.rows, "column": -(-self.dim // self.multiple)}[self.sharding]

    def costs(self, kind: Kind, rows: int, dim: int) -> Costs:
        """Return what a shard of ``rows`` costs."""
        return kind.costs([Shape(rows, dim)], self.load)


@dataclass
class Option:
    """A number of bits in training.

    Args:
        bits: k.
        costs: of a shard.
        planes, row_state: bytes of the optimizer's state of a shard: bits 2 to k, and a word a row.
        fits: whether a training step of it does.
        largest_dim: the largest D that would fit, a multiple of the bits a value, 0 if none.
        most_rows: the most rows that would fit, of the whole table, 0 if none.
        fewest_gpus: the smallest number of shards that would fit; None if no number does.
    """

    bits: int
    costs: Costs
    planes: int
    row_state: int
    fits: bool
    largest_dim: int
    most_rows: int
    fewest_gpus: int | None


@dataclass
class Plan:
    """What fits.

    Args:
        wish: what is asked for.
        options: for each number of bits.
        serving_bytes: of a shard that only serves.
        others: bytes of a training step of the same shard as floats, of as many values, or bools, of as many weights.
        sent: what passes in a step between the largest shard and the other ranks, packed.
        sent_fp32: the same where the table is fp32, of as many values.
        fp32: what the shard costs as fp32, of as many values, with row-wise Adagrad.
        as_binary: of thermometers of 2, 4 or 8 bits, what the shard costs as binary values with the most bits.
    """

    wish: Wish
    options: list[Option]
    serving_bytes: int
    others: dict[str, int]
    sent: Traffic
    sent_fp32: Traffic
    fp32: Costs
    as_binary: Costs | None = None

    @property
    def serves(self) -> bool:
        """Whether a shard fits for serving, with one bit a weight."""
        return self.serving_bytes <= self.wish.budget

    @property
    def asked(self) -> Option | None:
        """The option that is asked for; without one, the most bits that fit, or None where none do."""
        bits = self.wish.bits
        return next((o for o in self.options if (o.fits if bits is None else o.bits == bits)), None)

    @property
    def fits(self) -> bool:
        """Whether what was asked for fits."""
        return self.asked is not None and self.asked.fits

    @property
    def something_fits(self) -> bool:
        """Whether fewer bits or columns would, if not that."""
        return any(option.largest_dim for option in self.options)

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        wish, part = asdict(self.wish), self.wish.part()
        return {
            **wish,
            "shard_rows": part.rows,
            "shard_dim": part.dim,
            "shard_values": part.dim // self.wish.bits_per_value,
            "budget": self.wish.budget,
            "fits": self.fits,
            "something_fits": self.something_fits,
            "serving": {"bytes": self.serving_bytes, "fits": self.serves},
            "training": [asdict(option) for option in self.options],
            "others": self.others,
            "wire": {"packed": _plain(self.sent), "fp32": _plain(self.sent_fp32)},
            "fp32": {"table": self.fp32.table, "row_state": self.fp32.state},
            "as_binary": None if self.as_binary is None else self.as_binary.plain(),
        }


def _plain(sent: Traffic) -> dict[str, int]:
    return {**asdict(sent), "total": sent.total}


def make_plan(wish: Wish) -> Plan:
    """Work out what fits.

    >>> plan = make_plan(Wish(10**9, 64, bits=4, memory=24 * 10**9, reserve=0))
    >>> plan.fits, [option.bits for option in plan.options if option.fits], plan.options[4].largest_dim
    (False, [2, 1], 32)
    """
    options = [_option(wish, bits) for bits in wish.all_bits]
    floats, part = Floats(32, "rowwise-adagrad"), wish.part()
    values = part.dim // wish.bits_per_value
    others: list[tuple[Kind, int]] = [(Floats(32, "adagrad"), values), (floats, values), (Char(), part.dim)]
    return Plan(
        wish,
        options,
        serving_bytes=Packed(1).table(part),
        others={f"{k.title}, {k.optimizer}": wish.costs(k, part.rows, dim).peak for k, dim in others},
        sent=_sent(wish, index=index_bytes(wish.rows), bits=count_bits(wish.load.length), packed=True),
        sent_fp32=_sent(wish, index=INDEX, bits=FLOAT_BITS, packed=False),
        fp32=wish.costs(floats, part.rows, values),
        as_binary=_as_binary(wish),
    )


def _as_binary(wish: Wish) -> Costs | None:
    """Return what thermometers would cost as binary values, with the most bits in training; None of other tables."""
    if wish.code == "binary" or wish.bits_per_value not in BINARY_GROUPS:
        return None
    other = replace(wish, code="binary", bits=None)
    part = other.part()
    return other.costs(other.packed(other.all_bits[0]), part.rows, part.dim)


def _sent(wish: Wish, *, index: int, bits: int, packed: bool) -> Traffic:
    """Return what passes in a step between the largest shard and the ranks that do not hold it.

    Args:
        wish: its batch is shared by the ranks evenly; ids are spread over the rows evenly.
        index: bytes of an id.
        bits: of a value forward.
        packed: whether columns, counted, are sent, or values, floats; and whether ranks that share columns tell each
            other how large rows' gradients are.
    """
    part, others = wish.part(), (wish.gpus - 1) / wish.gpus
    share = part.rows / wish.rows
    split = packed and wish.row_state and part.dim < wish.dim
    shared = (part.rows, wish.load.entries * share)
    return traffic(
        columns=part.dim if packed else part.dim // wish.bits_per_value,
        bags=wish.load.bags * others,
        entries=wish.load.entries * others * share,
        index=index,
        bits=bits,
        # One number a value comes back, of however many columns it is made.
        gradient=FLOAT / wish.bits_per_value if packed else FLOAT,
        shared_gradients=distinct_gradients(*shared, wish.load.bags) if split else 0,
        shared_rows=distinct_rows(*shared) if split else 0,
    )


def _option(wish: Wish, bits: int) -> Option:
    kind, group = wish.packed(bits), wish.bits_per_value

    def fits(*, rows: int | None = None, dim: int | None = None, gpus: int | None = None) -> bool:
        part = wish.part(rows=rows, dim=dim, gpus=gpus)
        return wish.costs(kind, part.rows, part.dim).peak <= wish.budget

    def too_few(gpus: int) -> bool:
        return not fits(gpus=gpus)

    part = wish.part()
    taken = footprint(part.rows, part.dim, bits, row_state=wish.row_state)
    return Option(
        bits=bits,
        costs=wish.costs(kind, part.rows, part.dim),
        planes=taken.planes,
        row_state=taken.row_state,
        fits=fits(),
        largest_dim=group * _largest(lambda values: fits(dim=group * values), MAX_EMBEDDING_DIM // group),
        most_rows=_largest(lambda rows: fits(rows=rows), MOST * wish.gpus),
        fewest_gpus=None if too_few(wish.most_gpus) else 1 + _largest(too_few, wish.most_gpus),
    )


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number in 1..most for which ``holds``, which must hold up to it, or 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
