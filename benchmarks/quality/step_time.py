"""Time of whole training steps at equal D: packed tables beside their fp32 twins, interleaved in one process.

    python -m benchmarks.quality.step_time --data ml-1m --data-path PATH --dim 128

A step is the batch, forward, backward and both optimizers. Models take turns, so that what else the machine does falls
on all of them; medians, and ratios to the fastest twin of `torch.nn.EmbeddingBag`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.quality import grids
from benchmarks.quality.data import registry
from benchmarks.quality.run import Run

METHODS: tuple[tuple[str, int | None], ...] = (
    ("counter-binary", 2),
    ("counter", 8),
    ("counter", 4),
    ("vote-flip", 4),
    ("fp32-adagrad", None),
    ("fp32-adam", None),
)
TWINS = ("fp32-adagrad", "fp32-adam")
WARM_STEPS = 3


def seconds_of_steps(runs: Sequence[Run], steps: int) -> list[list[float]]:
    """Return the seconds of ``steps`` steps of each run, after a few to warm up; runs take turns."""
    found: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_STEPS + steps):
        for run, seconds in zip(runs, found, strict=True):
            positions = run.data.train[
                torch.randperm(len(run.data.train), generator=run.order)[: run.config.batch_size]
            ]
            started = time.perf_counter()
            run.step(positions)
            if number >= WARM_STEPS:
                seconds.append(time.perf_counter() - started)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m", choices=list(grids.MODELS))
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = registry.load(options.data, options.data_path, {})
    runs = [Run(grids.recipe(options.data, method, options.dim, bits), data) for method, bits in METHODS]
    medians = [statistics.median(seconds) for seconds in seconds_of_steps(runs, options.steps)]
    fastest = min(median for (method, _), median in zip(METHODS, medians, strict=True) if method in TWINS)
    print(f"{options.data}, D = {options.dim}, {options.threads} threads, median of {options.steps} interleaved steps")
    for (method, bits), median in zip(METHODS, medians, strict=True):
        name = method if bits is None else f"{method}, k = {bits}"
        print(f"{name:>21}  {median * 1e3:7.1f} ms  {median / fastest:.2f} x the faster fp32 twin")


if __name__ == "__main__":
    main()
