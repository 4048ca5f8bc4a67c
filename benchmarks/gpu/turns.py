"""Turns on a device: every contender in turn for one slice of time, over and over, in an order that moves on.

A slice is timed twice: "captured", a graph of one call for each set of indices, which the device replays and in which
Python has no part; and "called", the same calls one by one from Python, as a model makes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.clock import Clock

CALLED, CAPTURED = "called", "captured"
#: Seconds of a slice, to which it is filled up with passes over the inputs: a thousand times what an event resolves.
SLICE = 0.008
#: A contender that takes longer for all its inputs runs on some of them, other ones in the next round.
LONGEST = 0.15
MOST_PASSES = 1000
LEAST_ROUNDS, MOST_ROUNDS = 5, 51
#: With contenders so slow that 5 rounds would take more than three times the budget, this many.
FEWEST_ROUNDS, PATIENCE = 2, 2


@dataclass
class Turn:
    """One contender's part: ``inputs`` are the arguments of its calls, one set after the other.

    Attributes:
        grad: whether it runs with gradients on; all else under `torch.no_grad`.
        captures: whether it can be captured: whether the host reads nothing of it and passes nothing that changes.
    """

    name: str
    function: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]]
    grad: bool = False
    captures: bool = True

    def run(self, first: int, count: int) -> None:
        """Call ``count`` times with the inputs from number ``first`` on, round and round.

        A result stays until its input comes again: one buffer, written over and over, would stay in the cache.
        """
        held = [None] * len(self.inputs)
        with torch.set_grad_enabled(self.grad):
            for number in range(first, first + count):
                place = number % len(held)
                held[place] = self.function(*self.inputs[place])


@dataclass
class Taken:
    """Seconds a call in every round, and why someone stopped.

    Attributes:
        called, captured: by name.
        uncaptured: why there is no graph, by name.
        failed: why a contender was taken out, by name; its numbers are gone.
    """

    called: dict[str, list[float]] = field(default_factory=dict)
    captured: dict[str, list[float]] = field(default_factory=dict)
    uncaptured: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def leave_out(self, name: str, error: Exception) -> None:
        """Forget what a contender took, and keep why."""
        self.failed[name] = reason(error)
        self.called.pop(name, None)
        self.captured.pop(name, None)


@dataclass
class Slice:
    """One contender's slice: its graph, and how many calls and passes fill the time."""

    turn: Turn
    calls: int
    passes: int
    replay: Callable[[], Any] | None

    def called(self, clock: Clock, number: int) -> float:
        """Return the seconds a call of the calls in round ``number``, after a few that are not timed."""
        first = number * self.calls
        self.turn.run(first, min(self.calls, 4))
        return clock.seconds(lambda: self.turn.run(first, self.calls)) / self.calls

    def captured(self, clock: Clock) -> float | None:
        """Return the seconds a call of the replayed graph, after a pass that is not timed; None without a graph."""
        if self.replay is None:
            return None
        self.replay()
        replay = self.replay

        def work() -> None:
            for _ in range(self.passes):
                replay()

        return clock.seconds(work) / (self.passes * len(self.turn.inputs))


def reason(error: Exception) -> str:
    """Return in one line why a contender is out."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory: its table, and what it makes beside it, take more than is free on this device"
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {text[:300]}"


def prepare(clock: Clock, turn: Turn, taken: Taken) -> Slice:
    """Warm a contender up, capture it, and see how many calls fill a slice."""
    count = len(turn.inputs)
    turn.run(0, 1)
    clock.synchronize()
    one = max(clock.seconds(lambda: turn.run(0, 1)), 1e-7)
    calls = max(1, min(count, int(LONGEST / one)))
    if calls == count:
        calls = count * min(MOST_PASSES, max(1, math.ceil(SLICE / (one * count))))
    if not turn.captures or calls < count:
        return Slice(turn, calls, 0, None)
    try:
        replay = clock.capture(lambda: turn.run(0, count))
        replay()
        clock.synchronize()
        passes = math.ceil(SLICE / max(clock.seconds(replay), 1e-7))
    except Exception as error:  # what a call reads on the host cannot be captured; called it still can be
        taken.uncaptured[turn.name] = reason(error)
        return Slice(turn, calls, 0, None)
    return Slice(turn, calls, min(MOST_PASSES, max(1, passes)), replay)


def _prepared(clock: Clock, turn: Turn, taken: Taken) -> Slice | None:
    """Return the slice of ``turn``, or None if it fails: one who does must not take the others along."""
    try:
        return prepare(clock, turn, taken)
    except Exception as error:
        taken.leave_out(turn.name, error)
        return None


def take_turns(clock: Clock, turns: Sequence[Turn], budget: float) -> Taken:
    """Measure in rounds: in each, each contender has one slice captured and one called.

    Args:
        budget: seconds; 5 rounds are measured at least, if they fit into three times the budget.
    """
    taken = Taken()
    slices = [one for turn in turns if (one := _prepared(clock, turn, taken)) is not None]
    end = time.perf_counter() + budget
    for number in range(MOST_ROUNDS):
        left = end - time.perf_counter()
        if (number >= LEAST_ROUNDS and left < 0) or (number >= FEWEST_ROUNDS and left < -PATIENCE * budget):
            break
        first = number % max(1, len(slices))
        for one in (*slices[first:], *slices[:first]):
            try:
                captured, called = one.captured(clock), one.called(clock, number)
            except Exception as error:
                taken.leave_out(one.turn.name, error)
                slices = [other for other in slices if other is not one]
                continue
            taken.called.setdefault(one.turn.name, []).append(called)
            if captured is not None:
                taken.captured.setdefault(one.turn.name, []).append(captured)
    return taken
