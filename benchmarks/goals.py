"""What packedbag sets out to reach on a CPU, and how to read it from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import readings, training
from benchmarks.peers.boolean import BOOL
from benchmarks.peers.ceiling import CEILING
from benchmarks.peers.packed import MAJORITY, SUM, SUM_GRAD, WEIGHTED, kernel_name
from benchmarks.peers.torch_float import FP32, FP32_GRAD, FP32_WEIGHTED
from benchmarks.readings import Reading

Results = dict[str, Any]
Find = Callable[[Results], Reading | None]

MAIN = "1e6x128x2048x20"
SMALL = "1e5x128x2048x20"
WIDE = "1e6x256x512x50"
BATCHES = ("1e6x64x2048x20", MAIN, f"{MAIN}-zipf", "1e7x128x2048x20", WIDE, SMALL)
ONE_BAG = "1e6x128x1x20"
MEGABYTE = 1e6


class Bounded:
    """A goal's ``bound``, in ``unit``, to reach at least or (``at_most``) at most."""

    bound: float
    at_most: bool
    unit: str

    def met(self, reading: Reading) -> bool:
        """Say whether the goal is reached, to the two digits in which it is set."""
        return reading.value <= self.bound if self.at_most else reading.value >= self.bound

    def target(self) -> str:
        """Return the bound in words."""
        return f"{'<=' if self.at_most else '>='} {self.bound:g}{self.unit if self.unit == 'x' else ' ' + self.unit}"


@dataclass(frozen=True)
class Goal(Bounded):
    """One thing to reach.

    Attributes:
        what: names both sides.
        bound: the value to reach, at least or (``at_most``) at most; ``unit`` follows it.
        find: reads the value, or None where it was not measured.
        command: measures this alone.
        short: why the value may be missed, shown where it is.
    """

    what: str
    bound: float
    find: Find
    command: str
    short: str
    at_most: bool = False
    unit: str = "x"


def bench(part: str, shapes: str, *more: str) -> str:
    """Return the command that measures one goal alone."""
    return f'make bench ARGS="{" ".join((f"--parts {part}", f"--shapes {shapes}", *more))}"'


def times(shape: str, slow: str, fast: str, part: str = "forward", threads: int = 1) -> Find:
    """Return a reader of how many times faster ``fast`` is."""

    def find(results: Results) -> Reading | None:
        result = readings.shape_of(results.get(part, []), shape)
        return None if result is None else readings.ratio(result, threads, slow, fast)

    return find


def times_fastest(shape: str, family: str, fast: str) -> Find:
    """Return a reader of how many times faster ``fast`` is than the fastest of a family, which it names."""

    def find(results: Results) -> Reading | None:
        result = readings.shape_of(results.get("forward", []), shape)
        peer = None if result is None else readings.fastest(result, 1, family)
        found = None if result is None or peer is None else readings.ratio(result, 1, peer, fast)
        return None if found is None else replace(found, detail=f"{peer}")

    return find


def least_gain(shapes: Sequence[str], name: str) -> Find:
    """Return a reader of what two threads gain, for the shape where it is least."""

    def find(results: Results) -> Reading | None:
        found = []
        for shape in shapes:
            result = readings.shape_of(results.get("forward", []), shape)
            gain = None if result is None else readings.between_threads(result, name)
            if gain is not None:
                found.append(replace(gain, detail=f"least of {{}} shapes: {shape}"))
        if not found:
            return None
        least = min(found, key=lambda reading: reading.value)
        return replace(least, detail=least.detail.format(len(found)))

    return find


def above_state(results: Results) -> Reading | None:
    """Return the megabytes that a step holds above table and state."""
    memory = results.get("memory")
    if not memory or memory["shape"] != MAIN:
        return None
    value = memory["above_bytes"] / MEGABYTE
    return Reading(value, value, value)


CALL = "checks, torch's allocation and Python take about 15 us of a call, more than in a loop on a warm cache"
SWINGS = f"{CALL}; and the rate swings from run to run with the room that others leave in the shared last cache"
TWO_CACHES = f"the last cache holds the peer's table as well as packedbag's, and {CALL}"
COUNTING = f"{CALL}; counting a row's bits takes three times the instructions of an XOR"
BY_TABLE = "an instruction adds 16 columns of four rows, where counting adds 64 of one"
ON_ONE_THREAD = f"{CALL}; they stay on one thread, which of the 90 us at 1e5 x 128 leaves 1.65 at most"
UPDATE = (
    "of about 110 ns a row a quarter draws random numbers, more than the goal leaves for everything; a third moves "
    "bits between planes and counters; see docs/design/fused_step.md"
)

GOALS: tuple[Goal, ...] = (
    *(
        Goal(
            f"sum to fp32 vs `F.embedding_bag` fp32, {shape}",
            bound,
            times(shape, FP32, SUM),
            bench("forward", shape, "--peers fp32", "--threads 1"),
            SWINGS,
        )
        for shape, bound in ((MAIN, 14), (SMALL, 12), (WIDE, 20))
    ),
    *(
        Goal(
            f"sum to fp32 vs the fastest low-bit peer, {shape}",
            bound,
            times_fastest(shape, "low-bit", SUM),
            bench("forward", shape, "--peers bit INT", "--threads 1"),
            TWO_CACHES,
        )
        for shape, bound in zip(BATCHES, (3.5, 3.5, 3.2, 2.5, 3.2, 3.5), strict=True)
    ),
    *(
        Goal(
            f"{words} vs the bool reference, {MAIN}",
            bound,
            times(MAIN, BOOL, name),
            bench("forward", MAIN, "--peers bool packed", "--threads 1"),
            CALL,
        )
        for words, name, bound in (("majority to packed", MAJORITY, 50), ("sum to fp32", SUM, 40))
    ),
    *(
        Goal(
            f"{words} vs the gather ceiling, {MAIN}",
            bound,
            times(MAIN, CEILING, name),
            bench("forward", MAIN, "--peers ceiling packed", "--threads 1"),
            COUNTING,
        )
        for words, name, bound in (("majority to packed", MAJORITY, 0.90), ("sum to fp32", SUM, 0.75))
    ),
    Goal(
        f"weighted sum vs fp32 weighted sum, {MAIN}",
        8,
        times(MAIN, FP32_WEIGHTED, WEIGHTED),
        bench("forward", MAIN, "--peers weighted", "--threads 1"),
        BY_TABLE,
    ),
    *(
        Goal(
            f"AVX2 vs AVX-512, kernels alone, {mode}, {MAIN}",
            0.6,
            times(MAIN, kernel_name("avx512", mode), kernel_name("avx2", mode)),
            bench("forward", MAIN, "--peers kernel", "--threads 1"),
            "AVX2 has no masks: a byte's bits are spread with shuffles and compares",
        )
        for mode in ("sum", "majority")
    ),
    Goal(
        "2 threads vs 1, sum to fp32, batch shapes",
        1.7,
        least_gain(BATCHES, SUM),
        bench("forward", " ".join(BATCHES), "--peers packed"),
        ON_ONE_THREAD,
    ),
    Goal(
        "one bag of 20, module under no_grad vs `F.embedding_bag`: its time",
        1.0,
        times(ONE_BAG, SUM, FP32),
        bench("forward", ONE_BAG, "--threads 1"),
        CALL,
        at_most=True,
    ),
    Goal(
        "one bag of 20, gradients on, module vs `F.embedding_bag`: its time",
        1.5,
        times(ONE_BAG, SUM_GRAD, FP32_GRAD),
        bench("forward", ONE_BAG, "--threads 1"),
        CALL,
        at_most=True,
    ),
    *(
        Goal(
            f"a training step, k = 8, vs {words}, {MAIN}",
            bound,
            times(MAIN, peer, training.name_of(8), "step"),
            bench("step", MAIN, "--threads 1"),
            UPDATE,
        )
        for words, peer, bound in (
            ("FBGEMM's fused row-wise Adagrad", training.FBGEMM, 8),
            ("torch forward and sparse backward without optimizer", training.TORCH, 2),
        )
    ),
    Goal(
        f"peak memory of that step above table and state, {MAIN}",
        16,
        above_state,
        "make bench ARGS='--parts memory'",
        "see docs/memory.md",
        at_most=True,
        unit="MB",
    ),
)
