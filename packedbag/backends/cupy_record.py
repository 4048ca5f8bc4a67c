"""What kernels have found on a device, and could not raise: indices and offsets that name nothing.

A kernel leaves its finding in the device's memory and sets a flag in the host's. The host sees the flag without asking
the device, at every call; `Record.take` waits for the device. See docs/cuda.md for the delay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from packedbag.core.errors import IndexRangeError, OffsetsError, PackedBagError

# Fields of the record and kinds of findings: the enums of cuda/entries.cuh.
POSITION, KIND, VALUE, LIMIT, FIELDS = 1, 2, 3, 4, 5
KIND_INDEX, KIND_START, KIND_FALL, KIND_BEYOND = 1, 2, 3, 4
#: No position: the largest unsigned number of 64 bits.
NOTHING = -1


class Record:
    """The findings on one device.

    Args:
        device: where kernels run.
        flag: int32 (1,) in host memory that they can write to.
        synchronize: waits for them.
    """

    def __init__(self, device: torch.device, flag: torch.Tensor, synchronize: Callable[[], None]) -> None:
        self.device = device
        with torch.inference_mode(False):  # it outlives the mode that it may be made in
            self.fields = torch.zeros(FIELDS, dtype=torch.int64, device=device)
            self.fields[POSITION] = NOTHING
        self._lock = threading.Lock()
        self.flag = flag
        self._flag = flag.numpy()
        self._synchronize = synchronize

    @property
    def pending(self) -> bool:
        """Whether a kernel that has run found something. Does not wait."""
        return bool(self._flag[0])

    def take(self) -> PackedBagError | None:
        """Wait for the device; return what was found since the last time, as an error, and forget it."""
        with self._lock:
            self._synchronize()
            if not self.pending:
                return None
            self._flag[0] = 0  # before the record is read: what is found from now on sets it again
            self._synchronize()
            found = self.fields.tolist()
            self.fields.zero_()
            self.fields[POSITION] = NOTHING
            self._synchronize()
        position, kind, value, limit = (found[i] for i in (POSITION, KIND, VALUE, LIMIT))
        if not kind:
            return None
        if kind == KIND_INDEX:
            return IndexRangeError(position, value, limit, device=str(self.device))
        allowed = {
            KIND_START: "0",
            KIND_FALL: f"at least offsets[{position - 1}] = {limit}",
            KIND_BEYOND: f"at most {limit}, the number of indices",
        }[kind]
        return OffsetsError(position, value, allowed, device=str(self.device))
