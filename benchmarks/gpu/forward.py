"""Bags a second on a device: every contender on one shape."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import packedbag
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.contender import Contender
from benchmarks.gpu.expected import Expected, check
from benchmarks.gpu.peers import registry
from benchmarks.gpu.shapes import SETS
from benchmarks.gpu.turns import Taken, Turn, reason, take_turns
from benchmarks.shapes import Shape, index_sets
from benchmarks.table import Table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How something is measured: with which clock, for how many seconds, beside whom, with how many sets of indices."""

    clock: Clock
    seconds: float
    peers: tuple[str, ...] | None = None
    sets: int | None = None

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.clock.device


def batches(shape: Shape, count: int, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return ``count`` sets of indices (B, L) on ``device``."""
    return [torch.from_numpy(indices).to(device, dtype) for indices in index_sets(shape, count)]


def release(device: torch.device) -> None:
    """Give back memory that no tensor uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def raise_pending(device: torch.device) -> None:
    """Raise what packedbag's kernels found out after their calls had returned."""
    if device.type == "cuda":
        packedbag.check_cuda()


def prepared(
    chosen: Sequence[Contender], table: Table, inputs: Sequence[torch.Tensor], say: Say
) -> tuple[list[Turn], dict[str, str]]:
    """Build and check each contender; return the turns of those that are right, and why the others are out."""
    shape, device = table.shape, table.words.device
    expected = Expected(table.words, shape.dim, inputs[0], shape.name)
    turns, failed = [], {}
    for contender in chosen:
        try:
            with torch.set_grad_enabled(contender.grad):
                call = contender.build(table)
                check(contender.name, contender.gives, call, shape, inputs[0], expected)
                arguments = [call.prepare(indices) for indices in inputs]
                raise_pending(device)
        except Exception as error:  # one who fails must not take the others along
            failed[contender.name] = reason(error)
            say(f"  {contender.name} is out: {failed[contender.name]}")
        else:
            turns.append(Turn(contender.name, call.function, arguments, contender.grad, contender.captures))
        if contender.name in failed:  # only now: within `except` the frames that failed still hold their memory
            release(device)
    return turns, failed


def result_of(shape: Shape, taken: Taken, chosen: Sequence[Contender], failed: dict[str, str]) -> dict[str, Any]:
    """Return what was taken as JSON can hold it."""
    found = asdict(taken)
    found["failed"] = {**failed, **taken.failed}
    return {
        "shape": shape.name,
        "bags": shape.bags,
        "families": {contender.name: contender.family for contender in chosen},
        **found,
    }


def measure(shape: Shape, options: Options, say: Say) -> dict[str, Any]:
    """Return the seconds a call of every contender.

    Args:
        say: is told what happens.
    """
    start = time.perf_counter()
    device = options.device
    release(device)
    table = Table(shape, device=device)
    inputs = batches(shape, options.sets or SETS, device, torch.int32)
    chosen, skipped = registry.selected(shape, device, options.peers)
    say(f"forward, {shape.name}: {len(chosen)} contenders")
    turns, failed = prepared(chosen, table, inputs, say)
    ready = time.perf_counter()
    taken = take_turns(options.clock, turns, options.seconds)
    for name, why in taken.failed.items():
        say(f"  {name} is out: {why}")
    raise_pending(device)
    found = result_of(shape, taken, chosen, failed)
    del turns, table, inputs
    release(device)
    return {
        **found,
        "sets": options.sets or SETS,
        "skipped": skipped,
        "prepared_seconds": ready - start,
        "took_seconds": time.perf_counter() - start,
    }
