"""Which packed tables fit a given memory: by formula, for each number of bits in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from packedbag.core.layout import MAX_EMBEDDING_DIM
from packedbag.report.kinds.char import Char
from packedbag.report.kinds.floats import Floats
from packedbag.report.kinds.kind import Costs, Kind, Load, Shape
from packedbag.report.kinds.packed import Packed
from packedbag.report.quantity import MOST

#: Bits in training, the most first: more of them learn better.
BITS = range(8, 0, -1)


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Args:
        rows: V, of the whole table.
        dim: D.
        bits: k, or None: any.
        memory: bytes of one machine or GPU.
        reserve: bytes of it that the tables may not take.
        gpus: machines or GPUs that the rows are split over, evenly.
        load: the batch. Each shard is counted with all of it, which is more than its part.
        row_state: whether the optimizer has a word a row.
    """

    rows: int
    dim: int
    bits: int | None
    memory: int
    reserve: int
    gpus: int = 1
    load: Load = field(default_factory=Load)
    row_state: bool = True

    @property
    def budget(self) -> int:
        """Bytes for the tables of a shard."""
        return self.memory - self.reserve

    def shard(self, gpus: int | None = None) -> int:
        """Return the rows of the largest shard, of ``gpus`` or as many as there are."""
        return -(-self.rows // (gpus or self.gpus))

    def costs(self, kind: Kind, rows: int, dim: int) -> Costs:
        """Return what a shard of ``rows`` costs."""
        return kind.costs([Shape(rows, dim)], self.load)


@dataclass
class Option:
    """A number of bits in training.

    Args:
        bits: k.
        costs: of a shard.
        fits: whether a training step of it does.
        largest_dim: the largest D that would fit, 0 if none.
        most_rows: the most rows that would fit, of the whole table, 0 if none.
        fewest_gpus: the smallest number of shards that would fit; None if no number does.
    """

    bits: int
    costs: Costs
    fits: bool
    largest_dim: int
    most_rows: int
    fewest_gpus: int | None


@dataclass
class Plan:
    """What fits; ``others`` are bytes of a training step of the same shard as floats or bools."""

    wish: Wish
    options: list[Option]
    serving_bytes: int
    others: dict[str, int]

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
        wish = asdict(self.wish)
        return {
            **wish,
            "shard_rows": self.wish.shard(),
            "budget": self.wish.budget,
            "fits": self.fits,
            "something_fits": self.something_fits,
            "serving": {"bytes": self.serving_bytes, "fits": self.serves},
            "training": [asdict(option) for option in self.options],
            "others": self.others,
        }


def make_plan(wish: Wish) -> Plan:
    """Work out what fits.

    >>> plan = make_plan(Wish(10**9, 64, bits=4, memory=24 * 10**9, reserve=0))
    >>> plan.fits, [option.bits for option in plan.options if option.fits], plan.options[4].largest_dim
    (False, [2, 1], 32)
    """
    options = [_option(wish, bits) for bits in BITS]
    others: list[Kind] = [Floats(32, "adagrad"), Floats(32, "rowwise-adagrad"), Char()]
    return Plan(
        wish,
        options,
        serving_bytes=Packed(1).table(Shape(wish.shard(), wish.dim)),
        others={f"{k.title}, {k.optimizer}": wish.costs(k, wish.shard(), wish.dim).peak for k in others},
    )


def _option(wish: Wish, bits: int) -> Option:
    kind = Packed(bits, row_state=wish.row_state)

    def fits(rows: int, dim: int) -> bool:
        return wish.costs(kind, rows, dim).peak <= wish.budget

    def too_few(gpus: int) -> bool:
        return not fits(wish.shard(gpus), wish.dim)

    rows = wish.shard()
    return Option(
        bits=bits,
        costs=wish.costs(kind, rows, wish.dim),
        fits=fits(rows, wish.dim),
        largest_dim=_largest(lambda dim: fits(rows, dim), MAX_EMBEDDING_DIM),
        most_rows=_largest(lambda rows: fits(rows, wish.dim), MOST) * wish.gpus,
        fewest_gpus=None if too_few(wish.rows) else 1 + _largest(too_few, wish.rows),
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
