"""The ceiling: a C loop that fetches the rows of each bag and XORs their words, and does nothing else."""

from __future__ import annotations

import ctypes
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contender import Batch, Call, Contender, only_batches
from benchmarks.pages import on_small_pages
from benchmarks.peers.compiled import compiled
from benchmarks.shapes import index_sets
from benchmarks.table import Table

CEILING = "gather ceiling"
SMALL_PAGES = "gather ceiling, 4 KB pages"
SOURCE = Path(__file__).with_name("gather.c")
#: How many entries ahead a row is prefetched; the best for a table is looked for before it is measured.
DISTANCES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
#: Only into L1; only into L2; into L2, and 8 entries ahead into L1.
NEAR = (-1, 0, 8)
PLANS = ((0, -1), *itertools.product(DISTANCES, NEAR))
TRIALS = 5


def _compiled() -> tuple[Any, str | None]:
    """Return the function, compiled for this machine, or why there is none."""
    function, reason = compiled(SOURCE, "gather")
    if function is not None:
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        function.argtypes = [pointer, pointer, integer, integer, integer, pointer, integer, integer, integer]
        function.restype = None
    return function, reason


def missing() -> str | None:
    """Return why the ceiling cannot be measured here, or None."""
    return _compiled()[1]


def _best_plan(function: Any, words: torch.Tensor, out: torch.Tensor, table: Table) -> tuple[int, int]:
    """Return the one of `PLANS` with the fastest pass over 8 sets of indices, the best of several passes."""
    sets = [np.ascontiguousarray(x) for x in index_sets(table.shape, 8, seed=1)]
    shape, width = table.shape, words.shape[1]
    best = {}
    for _ in range(TRIALS):
        for plan in PLANS:
            start = time.perf_counter()
            for indices in sets:
                function(
                    words.data_ptr(), indices.ctypes.data, shape.bags, shape.length, width, out.data_ptr(), *plan, 1
                )
            taken = time.perf_counter() - start
            best[plan] = min(best.get(plan, taken), taken)
    return min(best, key=best.__getitem__)


def _build(name: str) -> Any:
    def copy(table: Table) -> torch.Tensor:
        return on_small_pages(tuple(table.words.shape), torch.int32).copy_(table.words)

    def build(table: Table) -> Call:
        words = table.held("packed, 4 KB pages", copy) if name == SMALL_PAGES else table.words
        function = _compiled()[0]
        shape, width = table.shape, words.shape[1]
        out = torch.empty((shape.bags, width), dtype=torch.int32)
        plan = _best_plan(function, words, out, table)
        source, target, bags, length = words.data_ptr(), out.data_ptr(), shape.bags, shape.length
        # A team costs microseconds: a few bags are not worth one.
        threads = torch.get_num_threads if only_batches(table.shape) else lambda: 1

        def call(indices: int) -> torch.Tensor:
            function(source, indices, bags, length, width, target, *plan, threads())
            return out

        def read(result: torch.Tensor) -> Any:
            return result.numpy().view(np.uint32)

        return Call(call, prepare=_address, read=read, memory=[words])

    return build


def _address(batch: Batch) -> tuple[Any, ...]:
    return (batch.indices.data_ptr(),)


CONTENDERS = (
    Contender(CEILING, "ceiling", "xor", "packed", 0.125, _build(CEILING), missing=missing),
    Contender(SMALL_PAGES, "ceiling", "xor", "packed, 4 KB pages", 0.125, _build(SMALL_PAGES), missing=missing),
)
