"""What ``torch.cuda`` does in Python, for devices in the host's memory, where nothing is ever under way."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

DEVICES = 2
#: A small GPU's, so that what needs a large one is skipped.
TOTAL_BYTES = 2 << 30
SYNC_MODES = {"default": 0, "warn": 1, "error": 2}


class Stream:
    """A stream whose work is done as soon as it is asked for."""

    def __init__(self, device: Any = None, priority: int = 0, **named: Any) -> None:
        self.device_index = _index(device)
        self.device = torch.device("cuda", self.device_index)
        self.cuda_stream = 0

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return version and handle, as CuPy asks for them."""
        return 0, self.cuda_stream

    def synchronize(self) -> None:
        """Let the host see what kernels have told it."""
        torch.cuda.synchronize()

    wait_stream = wait_event = record_event = lambda self, *_: None

    def query(self) -> bool:
        """Return that all is done."""
        return True


class Event:
    """A moment; all moments are now."""

    def __init__(self, enable_timing: bool = False, **named: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        """Note the time, in ms."""
        self.at = time.perf_counter() * 1e3

    def elapsed_time(self, later: Event) -> float:
        """Return ms between two records."""
        return later.at - self.at

    wait = lambda self, *_: None  # noqa: E731

    def synchronize(self) -> None:
        """Let the host see what kernels have told it."""
        torch.cuda.synchronize()

    def query(self) -> bool:
        """Return that it has passed."""
        return True


def _index(device: Any) -> int:
    if device is None or device == "cuda":
        return torch.cuda.current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def put(**what: Any) -> None:
    """Put names into ``torch.cuda``, and into those of its modules that have imported them from there."""
    for name, value in what.items():
        before = getattr(torch.cuda, name, None)
        for module in [m for key, m in sys.modules.items() if key.startswith("torch.cuda.")]:
            if before is not None and getattr(module, name, None) is before:
                setattr(module, name, value)
        setattr(torch.cuda, name, value)


def install(library: ctypes.CDLL, replay_launch: Any) -> None:
    """Put the devices into ``torch.cuda``.

    Args:
        library: of `build.library`, loaded before torch.
        replay_launch: called with the number of a launch that a graph has recorded.
    """
    for name in ("allocated", "peak", "bytes_from"):
        getattr(library, f"host_device_{name}").restype = ctypes.c_size_t
    library.host_device_synchronize.restype = ctypes.c_char_p
    keep = ctypes.CFUNCTYPE(None, ctypes.c_int)(replay_launch)
    library.host_device_launches(keep)
    put(_host_device_launches=keep)  # C++ calls it as long as the process lives

    def exchange(index: int) -> int:
        before = int(library.host_device_current())
        if index >= DEVICES:
            raise RuntimeError("CUDA error: invalid device ordinal")
        if index >= 0:
            library.host_device_set(index)
        return before

    def synchronize(device: Any = None) -> None:
        refused = library.host_device_synchronize()
        if refused:
            raise RuntimeError(refused.decode())

    modes = {number: name for name, number in SYNC_MODES.items()}
    state = SimpleNamespace(sync=0)

    def set_sync_debug_mode(mode: int | str) -> None:
        state.sync = SYNC_MODES[mode] if isinstance(mode, str) else mode
        assert state.sync in modes
        library.host_device_waiting(state.sync)

    class CUDAGraph:
        def capture_begin(self, *_: Any, **named: Any) -> None:
            library.host_device_begin_capture()

        def capture_end(self) -> None:
            self.number = library.host_device_end_capture()

        def replay(self) -> None:
            library.host_device_replay(self.number)

        def reset(self) -> None:
            library.host_device_forget(self.number)

        def __del__(self) -> None:
            if hasattr(self, "number"):
                self.reset()

    @contextlib.contextmanager
    def graph(captured: CUDAGraph, pool: Any = None, stream: Any = None, **named: Any) -> Iterator[None]:
        captured.capture_begin()
        try:
            yield
        finally:
            captured.capture_end()

    properties = SimpleNamespace(
        name="host memory", major=9, minor=0, total_memory=TOTAL_BYTES, multi_processor_count=2, L2_cache_size=1 << 20
    )
    nothing = lambda *_: None  # noqa: E731
    allocated = lambda device=None: int(library.host_device_allocated(_index(device)))  # noqa: E731
    current = lambda: int(library.host_device_current())  # noqa: E731
    put(
        _lazy_init=lambda: None,
        _initialized=True,
        is_available=lambda: True,
        device_count=lambda: DEVICES,
        current_device=current,
        set_device=lambda device: exchange(_index(device)) and None,
        _exchange_device=exchange,
        _maybe_exchange_device=lambda index: exchange(index),
        get_device_capability=lambda device=None: (9, 0),
        get_device_name=lambda device=None: properties.name,
        get_device_properties=lambda device=None: properties,
        mem_get_info=lambda device=None: (TOTAL_BYTES - allocated(device), TOTAL_BYTES),
        memory_allocated=allocated,
        max_memory_allocated=lambda device=None: int(library.host_device_peak(_index(device))),
        reset_peak_memory_stats=lambda device=None: library.host_device_reset_peak(_index(device)),
        empty_cache=nothing,
        synchronize=synchronize,
        _sleep=nothing,
        Stream=Stream,
        Event=Event,
        CUDAGraph=CUDAGraph,
        graph=graph,
        current_stream=Stream,
        default_stream=Stream,
        set_stream=nothing,
        stream=lambda stream: contextlib.nullcontext(),
        is_current_stream_capturing=lambda: bool(library.host_device_capturing()),
        set_sync_debug_mode=set_sync_debug_mode,
        get_sync_debug_mode=lambda: state.sync,
    )
    torch._C._cuda_getDevice = current  # type: ignore[attr-defined]  # dynamo asks below torch.cuda
    of_the_host = torch.UntypedStorage.__new__

    def storage(cls: Any, *arguments: Any, device: Any = None, **named: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            return torch.empty(*arguments, dtype=torch.uint8, device=device).untyped_storage()
        return of_the_host(cls, *arguments, **named)

    torch.UntypedStorage.__new__ = storage  # type: ignore[method-assign, assignment]
    # Made first, and so the devices' own: see devices.cpp.
    torch.cuda.default_generators = tuple(torch.Generator(torch.device("cuda", i)) for i in range(DEVICES))
