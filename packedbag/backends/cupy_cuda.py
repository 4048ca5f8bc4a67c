"""The CUDA backend: the kernels of ``cuda/``, compiled and launched by CuPy on torch's memory and streams.

Bags, steps, lookups, packing and Hamming distances have kernels. The functions that only a step on the host needs, with
sizes that depend on values, are those of `packedbag.backends.eager`.

Nothing here waits for the device, but `CupyCuda.raise_found`: see `packedbag.backends.protocol.DeferredBackend`.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import ClassVar

import numpy as np
import torch

from packedbag.backends import cuda_kernels as kernels
from packedbag.backends.cuda_kernels import BOUNDS, FAMILIES, OUTPUTS, PLANES
from packedbag.backends.cupy_launch import WARP, Arguments, CuPy, Launcher, Machine, extra
from packedbag.backends.cupy_record import Record
from packedbag.backends.cupy_steps import CupySteps, integer
from packedbag.core.layout import words_per_row
from packedbag.core.modes import FLOATING

Tensor = torch.Tensor


@functools.cache
def missing() -> str | None:
    """Return why this backend cannot run here, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return f"cupy is not installed; run: pip install 'packedbag[{extra()}]'"
    try:
        machine = CuPy()
        machine.stream(torch.device("cuda", torch.cuda.current_device()))
        machine.cupy.cuda.nvrtc.getVersion()  # CuPy is imported without its compiler, too
    except Exception as error:  # whatever CuPy finds: another CUDA, no compiler, an old driver
        return f"cupy cannot use CUDA: {type(error).__name__}: {error}"
    return None


class CupyCuda(CupySteps):
    """CUDA kernels as a backend.

    Args:
        machine: launches; CuPy by default, which is imported when first needed.
    """

    name: ClassVar[str] = "cupy_cuda"
    arrays: ClassVar[str] = "torch"
    by_address: ClassVar[bool] = False
    deferred: ClassVar[bool] = True

    def __init__(self, machine: Machine | None = None) -> None:
        self._given = machine
        self._launcher: Launcher | None = None
        self._records: dict[torch.device, Record] = {}

    @property
    def launcher(self) -> Launcher:
        """Launches by name. Made when first needed: CuPy is not imported before."""
        if self._launcher is None:
            self._launcher = Launcher(self._given or CuPy())
        return self._launcher

    def record(self, device: torch.device) -> Record:
        """Return what kernels have found on ``device``."""
        found = self._records.get(device)
        if found is None:
            machine = self.launcher.machine
            found = Record(device, machine.shared_flag(), functools.partial(machine.synchronize, device))
            self._records[device] = found
        return found

    def has_found(self, device: torch.device) -> bool:
        """See `packedbag.backends.protocol.DeferredBackend.has_found`."""
        return self.record(device).pending

    def raise_found(self, device: torch.device, *, wait: bool) -> None:
        """See `packedbag.backends.protocol.DeferredBackend.raise_found`."""
        record = self.record(device)
        if wait or record.pending:
            error = record.take()
            if error is not None:
                raise error

    def new_flag(self) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.new_flag`."""
        return self.launcher.machine.shared_flag()

    def bag(
        self,
        words: Tensor,
        indices: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        row_scale: Tensor | None,
        out: Tensor,
        *,
        embedding_dim: int,
        mode: str,
        output: str,
        padding_idx: int,
        bounds: str,
    ) -> int:
        """See `packedbag.backends.protocol.Backend.bag`. Raises what an earlier call has found."""
        device = words.device
        record = self.record(device)
        if record.pending:
            self.raise_found(device, wait=True)
        bags, length = (len(offsets) - 1, 0) if offsets is not None else indices.shape
        width = words_per_row(embedding_dim)
        index, form = integer(indices), OUTPUTS[output]
        size = (np.int64(bags), np.int64(length), np.uint32(width), np.uint32(embedding_dim))
        entry = (np.int64(len(words)), np.int64(padding_idx), np.int32(BOUNDS[bounds]))
        mean, found = np.int32(mode == "mean"), (record.fields, record.flag)
        launch = self.launcher.launch
        if weights is not None or row_scale is not None:
            arguments: Arguments = (words, indices, offsets, weights, row_scale, out, *size, *entry, mean, *found)
            launch(device, "weighted_bag", (index, form), bags * width * WARP, arguments)
        elif offsets is None and length == 1 and mode != "majority" and output in FLOATING:
            group = 1 if embedding_dim % 4 else 4
            arguments = (words, indices, out, size[0], *size[2:], *entry, *found)
            launch(device, "lookup", (index, form, group), bags * (embedding_dim // group), arguments, block=256)
        else:
            most = length if offsets is None else PLANES[32]
            planes = 4 if mode == "max" else next(p for p, count in PLANES.items() if most <= count)
            arguments = (words, indices, offsets, out, *size, *entry, mean, *found)
            launch(device, "bag", (index, planes, FAMILIES[mode], form), bags * width, arguments)
        return -1

    def hamming(self, words: Tensor, queries: Tensor, *, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.Backend.hamming`."""
        rows, count, at_once = len(words), len(queries), 8 * 65535  # the grid's second dimension has 65,535 blocks
        out = torch.empty((count, rows), dtype=torch.int32, device=words.device)
        for start in range(0, count, at_once):
            some = queries[start : start + at_once]
            size = (np.int64(rows), np.int32(len(some)), np.uint32(words.shape[1]), np.uint32(embedding_dim))
            blocks = -(-len(some) // 8)
            arguments = (words, some, out[start:], *size)
            self.launcher.launch(words.device, "hamming", (), rows, arguments, block=256, rows_of_blocks=blocks)
        return out

    def pack(self, x: Tensor) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.pack`."""
        if x.itemsize not in kernels.PACKABLE:
            x = x >= 0
        x = x.contiguous()
        dim = x.shape[-1]
        width = words_per_row(dim)
        out = torch.empty((*x.shape[:-1], width), dtype=torch.int32, device=x.device)
        lines = x.numel() // dim
        arguments = (x, out, np.int64(lines), np.uint32(width), np.uint32(dim))
        kind = (kernels.PACKABLE[x.itemsize],)
        self.launcher.launch(x.device, "pack", kind, lines * width * WARP, arguments, block=256)
        return out

    def unpack(self, words: Tensor, embedding_dim: int) -> Tensor:
        """See `packedbag.backends.protocol.DeferredBackend.unpack`."""
        words = words.contiguous()
        out = torch.empty((*words.shape[:-1], embedding_dim), dtype=torch.bool, device=words.device)
        lines, width = words.numel() // words.shape[-1], words.shape[-1]
        arguments = (words, out, np.int64(lines), np.uint32(width), np.uint32(embedding_dim))
        self.launcher.launch(words.device, "unpack", (), lines * embedding_dim, arguments, block=256)
        return out


BACKEND = CupyCuda()
