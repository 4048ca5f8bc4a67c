"""Turns: every contender in turn for one slice of time, over and over, in an order that changes.

A slice is a whole pass over the inputs, after calls that are not timed: each contender is measured in its own steady
state. How fast single calls are on emptied caches is measured apart.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: A slice in which the process waited for a core for more than this part of the time is not counted.
MOST_WAITING = 0.05
LEAST_ROUNDS = 5
#: On a machine so busy that 5 rounds would take more than three times the budget, this many.
FEWEST_ROUNDS = 2
PATIENCE = 2
MOST_ROUNDS = 101
#: The cache is emptied by reading this many times its size.
FLUSH = 2
COLD_CALLS = 9
#: What the contender before left in the cache is no business of this one: calls of so many seconds, one pass at most,
#: come before a slice and are not timed. A table that the cache holds is then there, whoever's it is.
WARMING = 0.02


@dataclass
class Turn:
    """One contender's part: ``inputs`` are the arguments of its calls, one set after the other."""

    name: str
    function: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]]
    grad: bool = False


@dataclass
class Taken:
    """What each contender took, a call, in every round.

    Attributes:
        seconds: of the clock.
        own: seconds of its thread's own time, with one thread: what a busy machine leaves to judge by.
        waited: the rounds in which it waited for a core.
        cold: seconds of single calls on emptied caches.
    """

    threads: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    own: dict[str, list[float]] = field(default_factory=dict)
    waited: dict[str, list[int]] = field(default_factory=dict)
    cold: dict[str, list[float]] = field(default_factory=dict)


def take_turns(turns: Sequence[Turn], threads: Sequence[int], budget: float) -> list[Taken]:
    """Measure in rounds: in each, with each number of threads, each contender passes once over its inputs.

    Args:
        threads: of torch, of packedbag and of the ceiling alike.
        budget: seconds; 5 rounds are measured at least, if they fit into three times the budget.
    """
    found = [Taken(count, *({turn.name: [] for turn in turns} for _ in range(3))) for count in threads]
    end = time.perf_counter() + budget
    for number in range(MOST_ROUNDS):
        left = end - time.perf_counter()
        if (number >= LEAST_ROUNDS and left < 0) or (number >= FEWEST_ROUNDS and left < -PATIENCE * budget):
            break
        first = number % len(turns)
        for taken in found:
            torch.set_num_threads(taken.threads)
            for turn in (*turns[first:], *turns[:first]):
                seconds, own, waited = _slice(turn, alone=taken.threads == 1)
                taken.seconds[turn.name].append(seconds)
                if taken.threads == 1:
                    taken.own[turn.name].append(own)
                if waited:
                    taken.waited[turn.name].append(number)
    return found


def _slice(turn: Turn, *, alone: bool = True) -> tuple[float, float, bool]:
    """Return the seconds a call of one pass over the inputs, its thread's own, and whether it waited for a core."""
    function = turn.function
    with torch.set_grad_enabled(turn.grad):
        warm = time.perf_counter() + WARMING
        for arguments in turn.inputs:
            function(*arguments)
            if time.perf_counter() > warm:
                break
        delay, before, start = _delay(), time.thread_time(), time.perf_counter()
        for arguments in turn.inputs:
            function(*arguments)
        wall = time.perf_counter() - start
        own = time.thread_time() - before
    waiting = _delay() - delay
    if alone:
        waiting = max(waiting, wall - own)
    return wall / len(turn.inputs), own / len(turn.inputs), waiting > MOST_WAITING * wall


def _delay() -> float:
    """Return the seconds that this process's threads were ready to run and had no core; 0 where no one counts."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # the thread has ended, or the system does not count
            total += int(file.read_text().split()[1])
    return total / 1e9


def cold(turns: Sequence[Turn], taken: Taken, cache_bytes: int) -> None:
    """Time single calls, each after other memory, twice the size of the last cache, was read."""
    torch.set_num_threads(taken.threads)
    other = np.ones(FLUSH * cache_bytes // 8)
    taken.cold = {turn.name: [] for turn in turns}
    for number in range(COLD_CALLS):
        first = number % len(turns)
        for turn in (*turns[first:], *turns[:first]):
            arguments = turn.inputs[number % len(turn.inputs)]
            with torch.set_grad_enabled(turn.grad):
                other.sum()
                start = time.perf_counter()
                turn.function(*arguments)
                taken.cold[turn.name].append(time.perf_counter() - start)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
