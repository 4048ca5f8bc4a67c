"""Bags a second: every contender on one shape, in groups that fit in memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.contender import Batch, Call, Contender
from benchmarks.machine import last_cache_bytes
from benchmarks.pages import share_on_huge_pages
from benchmarks.peers import registry
from benchmarks.shapes import Shape, index_sets
from benchmarks.slices import Turn, cold, take_turns
from benchmarks.table import Expected, Table


class WrongValuesError(RuntimeError):
    """A contender returned other values than the words hold: a fast wrong answer is not worth timing."""

    def __init__(self, name: str, shape: Shape, excess: float) -> None:
        super().__init__(f"{name} on {shape.name} gives wrong values: {excess:.3g} beyond its tolerance")


@dataclass(frozen=True)
class Options:
    """What is measured: numbers of threads, seconds a shape, bytes that tables may take at once, names of peers."""

    threads: tuple[int, ...]
    seconds: float
    bytes: float
    peers: tuple[str, ...] | None = None
    sets: int | None = None


def batches(shape: Shape, count: int) -> list[Batch]:
    """Return the rotating inputs; weights of weighted sums are normally distributed."""
    generator = np.random.default_rng(2)
    size = (shape.bags, shape.length)
    return [
        Batch.of(indices, generator.standard_normal(size).astype(np.float32)) for indices in index_sets(shape, count)
    ]


def check(contender: Contender, call: Call, shape: Shape, batch: Batch, expected: Expected) -> None:
    """Raise `WrongValuesError` unless a contender's values are those of the words."""
    values = call.read(call.function(*call.prepare(batch)))
    excess = expected.differs(contender.gives, values, call.tolerance * shape.length)
    if excess > 0:
        raise WrongValuesError(contender.name, shape, excess)


def measure(shape: Shape, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the seconds a call of every contender, as JSON can hold them.

    Args:
        say: is told what happens.
    """
    import torch

    start = time.perf_counter()
    table = Table(shape)
    inputs = batches(shape, options.sets or shape.sets)
    expected = Expected(table, inputs[0].indices.numpy(), inputs[0].weights.numpy())
    chosen, skipped = registry.selected(shape, options.peers)
    parts = registry.groups(chosen, shape, options.bytes)
    runs: list[dict[str, Any]] = []
    on_huge: dict[str, float | None] = {}
    for number, group in enumerate(parts):
        say(f"{shape.name}: group {number + 1} of {len(parts)}, {len(group)} contenders")
        torch.set_num_threads(max(options.threads))
        table.drop(contender.format for contender in group)
        gc.collect()
        turns = []
        for contender in group:
            torch.set_num_threads(1)
            call = contender.build(table)
            with torch.set_grad_enabled(contender.grad):
                check(contender, call, shape, inputs[0], expected)
            on_huge[contender.name] = min(
                (share for memory in call.memory if (share := share_on_huge_pages(memory)) is not None), default=None
            )
            turns.append(Turn(contender.name, call.function, [call.prepare(batch) for batch in inputs], contender.grad))
        found = take_turns(turns, options.threads, options.seconds / len(parts))
        if found[0].threads == 1:
            cold(turns, found[0], last_cache_bytes())
        runs += [{"group": number, **asdict(taken)} for taken in found]
        del turns, call
    return {
        "shape": shape.name,
        "sets": len(inputs),
        "bags": shape.bags,
        "families": {contender.name: contender.family for contender in chosen},
        "gives": {contender.name: contender.gives for contender in chosen},
        "skipped": skipped,
        "huge_pages": on_huge,
        "runs": runs,
        "took_seconds": time.perf_counter() - start,
    }
