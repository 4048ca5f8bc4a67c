"""Time on a device: CUDA events and captured graphs, or, to test this benchmark on a CPU, the host's clock."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], Any]


class Clock(Protocol):
    """How work on a device is timed, and what of its memory is in use."""

    device: torch.device

    def seconds(self, work: Work) -> float:
        """Return the seconds from when the device reaches ``work`` until it has done it."""

    def capture(self, work: Work) -> Work:
        """Return what does ``work`` again without Python: a graph that the device replays."""

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""

    def peak_bytes(self, work: Work) -> int | None:
        """Do ``work``; return the bytes that torch held at its peak above those before, or None if nobody counts."""


class CudaClock:
    """A GPU's own clock: events on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._stream = torch.cuda.Stream(device)

    def seconds(self, work: Work) -> float:
        """See `Clock.seconds`."""
        self._start.record()
        work()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def capture(self, work: Work) -> Work:
        """See `Clock.capture`: ``work`` must have run before, so that all it needs is compiled.

        `torch.cuda.graph` does the same, but empties the allocator's cache and collects garbage each time, 0.1 s.
        """
        graph, before, collects = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device), gc.isenabled()
        self.synchronize()
        gc.disable()  # the end of an older graph's life is not allowed within the capture of another
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # it only repeats that something went wrong
                        graph.capture_end()
                    # capture_end stops before it tells the allocator, which would let nobody empty its cache again.
                    with contextlib.suppress(Exception):
                        torch._C._cuda_endAllocateToPool(self.device.index, graph.pool())
                    raise
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
            torch.cuda.set_stream(before)
        self.synchronize()
        return graph.replay

    def synchronize(self) -> None:
        """See `Clock.synchronize`."""
        torch.cuda.synchronize(self.device)

    def peak_bytes(self, work: Work) -> int | None:
        """See `Clock.peak_bytes`."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before


class HostClock:
    """The host's clock, for a device that works while the host waits; there "captured" is the same as "called"."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, work: Work) -> float:
        """See `Clock.seconds`."""
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def capture(self, work: Work) -> Work:
        """See `Clock.capture`."""
        return work

    def synchronize(self) -> None:
        """See `Clock.synchronize`."""

    def peak_bytes(self, work: Work) -> int | None:
        """See `Clock.peak_bytes`."""
        work()
        return None


class WallClock:
    """Another clock's device by the host's clock: what a caller waits until the last of many calls is done."""

    def __init__(self, clock: Clock) -> None:
        self.device, self._clock = clock.device, clock
        self.capture, self.synchronize, self.peak_bytes = clock.capture, clock.synchronize, clock.peak_bytes

    def seconds(self, work: Work) -> float:
        """Return the host's seconds from an idle device to an idle device."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start


def clock_of(device: torch.device) -> Clock:
    """Return the clock for work on ``device``."""
    return CudaClock(device) if device.type == "cuda" else HostClock(device)
