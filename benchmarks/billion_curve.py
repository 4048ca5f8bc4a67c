"""What one looked-up row costs in a table of V rows, in a process of its own; prints one line of JSON.

    python benchmarks/billion_curve.py SETTINGS

SETTINGS is JSON: rows, dim, bits, adaptivity, bags, length, threads, huge_pages (bool), seconds (of each measurement).
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from packedbag import PackedEmbeddingBag
from packedbag.optim import CounterSGD, packed_parameters

PR_SET_THP_DISABLE = 41  # from linux/prctl.h
SETS = 31


def forbid_huge_pages() -> None:
    """Make this process use 4 KB pages alone."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise SystemExit("the system does not let a process forbid huge pages")


def nanoseconds(call: Callable[[torch.Tensor], Any], sets: list[torch.Tensor], seconds: float) -> dict[str, float]:
    """Return nanoseconds a row, the median and the least, of calls on index sets that take turns."""
    for batch in sets[:3]:
        call(batch)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < len(sets) or time.perf_counter() < end:
        batch = sets[len(taken) % len(sets)]
        start = time.perf_counter()
        call(batch)
        taken.append(time.perf_counter() - start)
    scale = 1e9 / sets[0].numel()
    return {"median": scale * float(np.median(taken)), "least": scale * min(taken), "calls": len(taken)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    if not settings["huge_pages"]:
        forbid_huge_pages()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    shape = settings["bags"], settings["length"]
    sets = [torch.randint(settings["rows"], shape) for _ in range(SETS)]
    module = PackedEmbeddingBag(settings["rows"], settings["dim"])
    anchors = packed_parameters(module)
    optimizer = CounterSGD(anchors, 0.02, bits=settings["bits"], adaptivity=settings["adaptivity"], decay=0.0, seed=0)
    grad = torch.randn(settings["bags"], settings["dim"])

    def step(batch: torch.Tensor) -> None:
        module(batch).backward(grad)
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Any] = {"rows": settings["rows"], "huge_pages": settings["huge_pages"]}
    with torch.no_grad():
        found["forward"] = nanoseconds(module, sets, settings["seconds"])
    found["step"] = nanoseconds(step, sets, settings["seconds"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
