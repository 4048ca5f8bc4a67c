"""Lets ``torch.load(weights_only=True)`` read packed bools once packedbag is imported, without importing torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = "torch.serialization"


def rebuild(words: Any, embedding_dim: int) -> Any:
    """Return the packed bools of saved words: what their pickles call."""
    from packedbag.adapters.bitorch_engine.parameter import BinaryEmbeddingParameter

    return BinaryEmbeddingParameter.of_words(words, embedding_dim)


def allow() -> None:
    """Tell torch that `rebuild` is safe to call: now, or as soon as torch is imported.

    torch keeps a list of what a file may call, and has no way to add to it before it is imported; `import packedbag`
    must stay light. A finder waits for torch's module and finds nothing itself.
    """
    loaded = sys.modules.get(WATCHED)
    if loaded is not None:
        loaded.add_safe_globals([rebuild])
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder):
    """Notices the import of `WATCHED`, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                module.add_safe_globals([rebuild])

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
