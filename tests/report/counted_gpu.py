"""A stand-in for a GPU and torch's allocator of it: the CPU, with every tensor's storage counted while it lives.

It counts what operators return, not what they hold inside meanwhile, as sorting does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: torch's allocator gives memory out in blocks of so many bytes.
BLOCK = 512


class NotTheCpu(str):
    """A device's name that is "cpu" to torch, and not to those who ask whether it is."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class CountedGpu(TorchDispatchMode):
    """Counts the bytes of the storages that live; `stands_for` puts it in place of `torch.cuda`.

    Attributes:
        calls: what was asked of it, in order; others may append to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._known: dict[int, Any] = {}
        self._held = self._peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
                    self._count(part.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if address in self._known or not size:
            return

        def gone(_: Any) -> None:
            del self._known[address]
            self._held -= size

        self._known[address] = weakref.ref(storage, gone)
        self._held += size
        self._peak = max(self._peak, self._held)

    def stands_for(self, cuda: Any, replace: Callable[[Any, str, Any], None]) -> None:
        """Answer for the allocator: ``replace`` is pytest's ``monkeypatch.setattr``."""

        def noted(name: str, answer: Callable[[], int | None]) -> None:
            def call() -> int | None:
                self.calls.append(name)
                return answer()

            replace(cuda, name, call)

        def reset() -> None:
            self._peak = self._held

        noted("synchronize", lambda: None)
        noted("empty_cache", lambda: None)
        noted("reset_peak_memory_stats", reset)
        noted("memory_allocated", lambda: self._held)
        noted("max_memory_allocated", lambda: self._peak)
