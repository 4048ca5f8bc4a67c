"""How fast the device copies its own memory: the rate that a kernel limited by memory can come near."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.clock import Clock

#: Bytes of the source, far above any cache. On a CPU, where the number means nothing, little is copied.
BYTES, BYTES_CPU = 2 << 30, 1 << 22
#: The part of what is free that source and target may take.
SHARE = 0.5
#: Seconds of copies that are not timed: the clocks of an idle card have to rise first.
WARMING = 0.3
TRIALS, PASSES = 15, 4


def measure(clock: Clock) -> dict[str, Any]:
    """Return bytes read and written a second, of random data, in several trials."""
    device = clock.device
    size = BYTES_CPU
    if device.type == "cuda":
        size = min(BYTES, int(torch.cuda.mem_get_info(device)[0] * SHARE / 2)) // 4096 * 4096
    source = torch.empty(size // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)

    def work() -> None:
        for _ in range(PASSES):
            target.copy_(source)

    warm = 0.0
    while warm < WARMING:
        warm += clock.seconds(work)
    rates = [2 * size * PASSES / clock.seconds(work) for _ in range(TRIALS)]
    if not torch.equal(source, target):
        raise RuntimeError("the device's copy is not what was copied")
    return {"bytes": size, "rates": rates}
