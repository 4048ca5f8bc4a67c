"""Which tensor an address belongs to: a launcher for a GPU passes addresses, and the emulator needs lengths."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Where tensors may lie: on the CPU, and on devices that are in the host's memory (host_device/).
DEVICES = {"cpu"}


@dataclass(slots=True)
class Remembered:
    """A range of memory, and whether its owner still lives."""

    address: int
    nbytes: int
    alive: Callable[[], bool]
    held: Any  # the object itself until the next launch, so that a temporary view lives as long as its launch
    launch: int


def extent(value: Any) -> tuple[int, int, Callable[[], bool]]:
    """Return (address, nbytes, alive) of a NumPy array or a torch tensor; a strided one reaches to its last element."""
    if isinstance(value, np.ndarray):
        owner: Any = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        reference = weakref.ref(owner)
        low, high = np.lib.array_utils.byte_bounds(value)
        return low, high - low if value.size else 0, lambda: reference() is not None
    if not hasattr(value, "data_ptr"):
        raise TypeError(f"neither a NumPy array nor a torch tensor: {type(value).__name__}")
    from torch.multiprocessing.reductions import StorageWeakRef

    if value.device.type not in DEVICES:
        raise TypeError(f"the emulator runs on the CPU; the tensor is on {value.device}")
    storage: Any = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
    elements = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True)) + 1
    nbytes = elements * value.element_size() if value.numel() else 0
    return value.data_ptr(), nbytes, lambda: not storage.expired()


class Addresses:
    """The ranges that were remembered, looked up by an address in them."""

    def __init__(self) -> None:
        self.by_start: dict[int, Remembered] = {}
        self.launch = 0
        self.held: list[Remembered] = []
        self.prune_at = 1024

    def remember(self, value: Any) -> int:
        address, nbytes, alive = extent(value)
        if nbytes == 0:
            return 0
        known = self.by_start.get(address)
        if known is not None and known.launch == self.launch and known.nbytes > nbytes:
            return address  # two arguments of one launch: the longer one bounds both
        self.by_start[address] = new = Remembered(address, nbytes, alive, value, self.launch)
        self.held.append(new)
        if len(self.by_start) > self.prune_at:
            self.by_start = {start: item for start, item in self.by_start.items() if item.alive()}
            self.prune_at = max(1024, 2 * len(self.by_start))
        return address

    def forget(self, value: Any) -> None:
        self.by_start.pop(extent(value)[0], None)

    def launched(self) -> None:
        """A launch is over: from now on only the owners keep their memory."""
        self.launch += 1
        for item in self.held:
            item.held = None
        self.held.clear()

    def bytes_from(self, address: int) -> int | None:
        """Return how many bytes are remembered from this address on, or None."""
        item = self.by_start.get(address)
        if item is not None and item.alive():
            return item.nbytes
        around = [
            item
            for item in self.by_start.values()
            if item.address < address < item.address + item.nbytes and item.alive()
        ]
        if not around:
            return None
        latest = max(around, key=lambda item: item.launch)
        return latest.address + latest.nbytes - address
