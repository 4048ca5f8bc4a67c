"""The clock of the GPU benchmark, with a torch.cuda that only notes what it is asked to do."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.gpu.clock import CudaClock, HostClock, WallClock, clock_of


class Notes(list[str]):
    """What was asked, in order."""

    def noting(self, name: str, result: Any = None) -> Any:
        return lambda *given, **named: (self.append(name), result)[1]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    noted = Notes()

    class Graph:
        def capture_begin(self, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            assert not gc.isenabled()
            noted.append("begin")

        def capture_end(self) -> None:
            noted.append("end")
            if "failed" in noted:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay(self) -> None:
            noted.append("replay")

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.record, self.synchronize = noted.noting("record"), noted.noting("wait")

        def elapsed_time(self, other: Event) -> float:
            return 12.0

    @contextlib.contextmanager
    def stream(chosen: str) -> Iterator[None]:
        noted.append(f"to {chosen}")
        yield
        noted.append("back")

    for name, value in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda device: "side",
        "stream": stream,
        "current_stream": lambda device: "main",
        "set_stream": lambda chosen: noted.append(f"set {chosen}"),
        "synchronize": noted.noting("synchronize"),
        "memory_allocated": noted.noting("before", 100),
        "reset_peak_memory_stats": noted.noting("reset"),
        "max_memory_allocated": noted.noting("peak", 350),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return noted


def test_seconds_are_those_between_two_events(notes: Notes) -> None:
    clock = clock_of(torch.device("cuda", 0))
    assert clock.seconds(lambda: notes.append("work")) == 0.012
    assert notes == ["record", "work", "record", "wait"]


def test_work_is_captured_on_a_stream_of_its_own(notes: Notes) -> None:
    replay = CudaClock(torch.device("cuda", 0)).capture(lambda: notes.append("work"))
    assert notes == ["synchronize", "to side", "begin", "work", "end", "back", "set main", "synchronize"]
    assert gc.isenabled()
    replay()
    assert notes[-1] == "replay"


def test_a_capture_that_fails_ends_and_says_why(notes: Notes) -> None:
    def work() -> None:
        notes.append("failed")
        raise ValueError("the host reads it")

    with pytest.raises(ValueError, match="the host reads it"):
        CudaClock(torch.device("cuda", 0)).capture(work)
    assert notes == ["synchronize", "to side", "begin", "failed", "end", "set main"]
    assert gc.isenabled()


def test_the_peak_is_counted_from_what_was_held_before(notes: Notes) -> None:
    assert CudaClock(torch.device("cuda", 0)).peak_bytes(lambda: notes.append("work")) == 250
    assert notes == ["before", "reset", "work", "synchronize", "peak"]


def test_a_wall_clock_waits_for_the_device_before_and_after(notes: Notes) -> None:
    wall = WallClock(CudaClock(torch.device("cuda", 0)))
    assert 0.0 <= wall.seconds(lambda: notes.append("work")) < 1.0
    assert notes == ["synchronize", "work", "synchronize"]
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
