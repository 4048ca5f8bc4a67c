"""The largest table that one GPU trains: as many rows as fit, steps all over it, and the oracle's word on them."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import packedbag
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.expected import Expected, WrongValuesError
from benchmarks.gpu.forward import Say, raise_pending, release
from benchmarks.gpu.oracle import check_step
from benchmarks.gpu.turns import reason
from packedbag.core.layout import words_per_row
from packedbag.optim import CounterSGD, packed_parameters

DIM, BITS = 64, 4
NAME = f"packedbag, CounterSGD k = {BITS}"
#: What stays free for batches, gradients and sorting.
LEFT = 6e9
#: A batch; on a CPU, which only tests this, it is small.
BAGS, BAGS_CPU, LENGTH, STEPS = 65_536, 256, 20, 4
#: Where the first try does not fit after all, others hold memory: so much less, twice.
LESS, TRIES = 0.95, 3
#: For the first and the last rows, beside rows from everywhere.
EDGE = 1000


def row_bytes(dim: int = DIM, bits: int = BITS) -> int:
    """Return the bytes that a row takes in training: its words, k - 1 planes of them, and a word of statistic."""
    return 4 * words_per_row(dim) * bits + 4


def most_rows(memory_bytes: float) -> int:
    """Return how many rows fit into so much memory, in whole millions where there are some."""
    rows = max(0, int((memory_bytes - LEFT) // row_bytes()))
    return rows // 1_000_000 * 1_000_000 or rows


def computed(memory_bytes: float) -> dict[str, Any]:
    """Return what would fit on a device that was not asked."""
    return {"computed": True, "rows": most_rows(memory_bytes), "row_bytes": row_bytes(), "memory_bytes": memory_bytes}


def batch(rows: int, bags: int, device: torch.device, seed: int) -> torch.Tensor:
    """Return indices (B, L) int64 from the whole table, some of the first and of the last rows among them."""
    generator = torch.Generator(device).manual_seed(seed)
    indices = torch.randint(rows, (bags, LENGTH), device=device, generator=generator)
    edge = min(EDGE, rows)
    near = torch.randint(edge, (bags, 2), device=device, generator=generator)
    indices[:, 0] = near[:, 0]
    indices[:, -1] = rows - 1 - near[:, 1]
    indices[0, 0], indices[-1, -1] = 0, rows - 1
    return indices


def train(rows: int, bags: int, clock: Clock) -> dict[str, Any]:
    """Make a table of ``rows``, reduce bags of it, take steps, and compare with the oracle.

    Raises:
        WrongValuesError, WrongStepError: a value, or a row after a step, is not the oracle's.
    """
    device = clock.device
    generator = torch.Generator(device).manual_seed(5)
    module = packedbag.PackedEmbeddingBag(rows, DIM, device=device, generator=generator)
    optimizer = CounterSGD(packed_parameters(module), lr=0.05, bits=BITS, seed=0)
    grad = torch.empty((bags, DIM), device=device).normal_(generator=generator)
    where = f"{rows:,} rows"
    compared, seconds = 0, []
    for number in range(STEPS):
        indices = batch(rows, bags, device, number)
        compared += check_step(NAME, where, module, optimizer, indices, grad)
        wrong = Expected(module.words, DIM, indices, where).differs("sum", module(indices).detach(), 0.0)
        if wrong:
            raise WrongValuesError(NAME, where, wrong)
        raise_pending(device)
    for number in range(STEPS, 3 * STEPS):
        indices = batch(rows, bags, device, number)

        def step(indices: torch.Tensor = indices) -> None:
            module(indices).backward(grad)
            optimizer.step()

        seconds.append(clock.seconds(step))
    raise_pending(device)
    state = optimizer.state[module.anchor]
    held = module.words.nbytes + state["planes"].nbytes + state["row_state"].nbytes
    return {"rows": rows, "bytes": held, "compared_rows": compared, "seconds": seconds}


def measure(rows: int | None, clock: Clock, say: Say) -> dict[str, Any]:
    """Return the largest table that could be trained, or the one of ``rows``, and the seconds of a step."""
    start = time.perf_counter()
    device, bags, free = clock.device, BAGS_CPU, None
    release(device)
    if device.type == "cuda":
        bags = BAGS
        torch.cuda.reset_peak_memory_stats(device)
        free = float(torch.cuda.mem_get_info(device)[0])
    if rows is None:
        if free is None:
            raise SystemExit("capacity: pass --rows, because a CPU does not say how many fit")
        rows = most_rows(free)
    for left in reversed(range(TRIES)):
        say(f"capacity: {rows:,} rows x {DIM}, k = {BITS}, {rows * row_bytes() / 1e9:.3g} GB")
        failure = None
        try:
            found = train(rows, bags, clock)
        except torch.cuda.OutOfMemoryError as error:
            if not left:
                raise
            failure = reason(error)
        release(device)
        if failure is None:
            break
        say(f"  {failure}")
        rows = int(rows * LESS)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        **found,
        "computed": False,
        "dim": DIM,
        "bits": BITS,
        "bags": bags,
        "length": LENGTH,
        "row_bytes": row_bytes(),
        "free_bytes": free,
        "peak_bytes": peak,
        "milliseconds": statistics.median(found["seconds"]) * 1e3,
        "took_seconds": time.perf_counter() - start,
    }
