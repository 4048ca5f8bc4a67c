"""What packedbag sets out to reach on a GPU, how to read it from the numbers, and why it falls short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.goals import Bounded
from benchmarks.gpu import reasons, step, traffic
from benchmarks.gpu.latency import PACKED_GRAD
from benchmarks.gpu.peers.boolean import BOOL
from benchmarks.gpu.peers.ceiling import CEILING
from benchmarks.gpu.peers.floats import BF16, FP32
from benchmarks.gpu.peers.packed import MAJORITY, SUM
from benchmarks.gpu.readings import copy_rate, difference, in_graphs, ratio, seconds
from benchmarks.gpu.shapes import MAIN, ONE_BAG, SMALL_STEP, WIDTHS
from benchmarks.gpu.turns import CALLED, CAPTURED
from benchmarks.readings import Reading, digits, shape_of
from benchmarks.shapes import Shape

Results = dict[str, Any]
Find = Callable[[Results], Reading | None]
Why = Callable[[Results], str]
BILLION = 1e9


@dataclass(frozen=True)
class Goal(Bounded):
    """One thing to reach.

    Attributes:
        what: names both sides.
        bound: the value to reach, at least or (``at_most``) at most; ``unit`` follows it.
        find: reads the value, or None where it was not measured.
        command: measures this alone.
        why: says from the numbers why the value is missed, where it is.
    """

    what: str
    bound: float
    find: Find
    command: str
    why: Why
    at_most: bool = False
    unit: str = "x"


def bench(parts: str, shapes: str = "", peers: str = "") -> str:
    """Return the command that measures one goal alone."""
    more = [f"--shapes {shapes}"] if shapes else []
    more += [f"--peers {peers}"] if peers else []
    return " ".join(("python -m benchmarks.gpu", f"--parts {parts}", *more))


def times(part: str, shape: str, slow: str, fast: str) -> Find:
    """Return a reader of how many times faster ``fast`` is: captured, with what it is from Python beside it."""

    def find(results: Results) -> Reading | None:
        result = shape_of(results.get(part, []), shape)
        found = None if result is None else ratio(result, CAPTURED, slow, fast)
        called = None if result is None else ratio(result, CALLED, slow, fast)
        if found is None or called is None:
            return None
        return found if part == "step" else replace(found, detail=f"called from Python {digits(called.value)}")

    return find


def step_times(peer: str) -> Find:
    """Return a reader of how many times faster a step with k = 8 is: on the main table, or one that ``peer`` fits."""

    def find(results: Results) -> Reading | None:
        for shape in (MAIN, SMALL_STEP):
            found = times("step", shape, peer, step.name_of(8))(results)
            if found is not None:
                return replace(found, detail=shape)
        return None

    return find


def of_traffic(shape: str) -> Find:
    """Return a reader of the rate of packedbag's sums, in sectors, as a part of the copy rate."""

    def find(results: Results) -> Reading | None:
        result, rate = shape_of(results.get("forward", []), shape), copy_rate(results)
        taken = None if result is None else seconds(result, CAPTURED, SUM)
        if taken is None or rate is None:
            return None
        least = traffic.sum_bytes(Shape.parse(shape)) / rate
        return Reading(least / taken.value, least / taken.high, least / taken.low, detail="of the copy rate")

    return find


def microseconds_more(how: str) -> Find:
    """Return a reader of how much longer one bag takes than in `F.embedding_bag`, to a tenth of a microsecond."""

    def find(results: Results) -> Reading | None:
        result = shape_of(results.get("latency", []), ONE_BAG)
        if result is None or (how == CAPTURED and not in_graphs(result, SUM, FP32)):
            return None
        found = difference(result, how, SUM, FP32)
        if found is None:
            return None
        return Reading(*(round(x * 1e6, 1) for x in (found.value, found.low, found.high)))

    return find


def largest_table(results: Results) -> Reading | None:
    """Return the billions of rows that were trained, or that would fit."""
    capacity = results.get("capacity")
    if not capacity:
        return None
    rows = capacity["rows"] / BILLION
    detail = "computed from the card's memory, not run" if capacity["computed"] else "trained, rows held to the oracle"
    return Reading(rows, rows, rows, detail=detail)


GOALS: tuple[Goal, ...] = (
    Goal(
        f"majority to packed vs the gather ceiling, {MAIN}",
        0.85,
        times("forward", MAIN, CEILING, MAJORITY),
        bench("forward", MAIN, "ceiling majority"),
        reasons.against(MAIN, CEILING, MAJORITY),
    ),
    Goal(
        f"sum to fp32, its sectors a second vs a device copy's bytes, {MAIN}",
        0.70,
        of_traffic(MAIN),
        bench("copy forward", MAIN, "packedbag"),
        reasons.against_traffic(MAIN, SUM, traffic.sum_bytes),
    ),
    *(
        Goal(
            f"{words} vs `{peer}`, 1e7x{dim}x65536x20",
            bound,
            times("forward", f"1e7x{dim}x65536x20", peer, name),
            bench("copy forward", f"1e7x{dim}x65536x20", "fp32 bf16 majority"),
            reasons.against_traffic(f"1e7x{dim}x65536x20", name, count, peer),
        )
        for dim in WIDTHS
        for words, name, count, peer, bound in (
            ("sum to fp32", SUM, traffic.sum_bytes, FP32, 4),
            ("sum to fp32", SUM, traffic.sum_bytes, BF16, 2.5),
            ("majority to packed", MAJORITY, traffic.majority_bytes, FP32, 10),
        )
    ),
    Goal(
        f"majority to packed vs the bool reference, {MAIN}",
        30,
        times("forward", MAIN, BOOL, MAJORITY),
        bench("copy forward", MAIN, "bool majority"),
        reasons.against_traffic(MAIN, MAJORITY, traffic.majority_bytes, BOOL),
    ),
    *(
        Goal(
            f"a training step, k = 8, vs `{peer}`", bound, step_times(peer), bench("step", MAIN, words), reasons.phases
        )
        for peer, bound, words in ((step.SPARSE, 3, "sparse"), (step.DENSE, 20, "dense"))
    ),
    Goal(
        f"one bag, the host's time of a call, no gradients, vs `F.embedding_bag`, {ONE_BAG}",
        10,
        microseconds_more(CALLED),
        bench("latency"),
        reasons.one_bag(CALLED, PACKED_GRAD),
        at_most=True,
        unit="us more",
    ),
    Goal(
        f"one bag in a captured graph vs `F.embedding_bag`, {ONE_BAG}",
        0,
        microseconds_more(CAPTURED),
        bench("latency"),
        reasons.one_bag(CAPTURED),
        at_most=True,
        unit="us more",
    ),
    Goal(
        "the largest table trained on this card, k = 4, D = 64, 6 GB left free",
        3,
        largest_table,
        bench("capacity"),
        reasons.room,
        unit="billion rows",
    ),
)
