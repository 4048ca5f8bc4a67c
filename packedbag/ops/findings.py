"""`check_cuda`: asks GPUs for what their kernels have found and could not raise."""

from __future__ import annotations

from typing import Any, cast

import torch

from packedbag.backends.protocol import DeferredBackend
from packedbag.backends.registry import select


def check_cuda(device: Any = None) -> None:
    """Wait for a GPU, and raise what kernels on it have found since the last check.

    Kernels run behind Python and cannot raise. An index outside its table, under ``bounds="raise"``, is left out of its
    bag and noted; the next call on that GPU which sees the note raises it. This function makes sure: when it returns,
    all calls made before it were right.

    Args:
        device: the GPU, as torch takes it; None: all that torch can use.

    Raises:
        IndexRangeError: an index lies outside its table; of several, the one at the lowest position is named.
        OffsetsError: offsets do not describe bags.

    Without a GPU nothing is left to raise: on a CPU every call raises by itself.

    >>> check_cuda()
    """
    if not torch.cuda.is_available():
        return
    chosen = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if device is not None:
        asked = torch.device(device)
        chosen = [torch.device(asked.type, torch.cuda.current_device() if asked.index is None else asked.index)]
    backend = select("cuda")
    for each in chosen:
        if backend.deferred:
            cast(DeferredBackend, backend).raise_found(each, wait=True)
        else:
            torch.cuda.synchronize(each)
