"""Embedding tables in one bit a weight, packed 32 to a uint32, in training and in serving.

The public names are imported on first use: ``import packedbag`` itself needs NumPy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from packedbag.adapters import safe_loading

if TYPE_CHECKING:
    from packedbag import backends, functional, optim
    from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
    from packedbag.core.errors import PackedBagError
    from packedbag.io.tables import load, save, verify
    from packedbag.nn import PackedEmbedding, PackedEmbeddingBag
    from packedbag.ops.findings import check_cuda
    from packedbag.ops.packing import pack, unpack
    from packedbag.table import PackedTable

__version__ = "0.1.0"

_HOMES = {
    "BinaryEmbeddingBag": "packedbag.adapters.bitorch_engine",
    "PackedBagError": "packedbag.core.errors",
    "PackedEmbedding": "packedbag.nn",
    "PackedEmbeddingBag": "packedbag.nn",
    "PackedTable": "packedbag.table",
    "check_cuda": "packedbag.ops.findings",
    "load": "packedbag.io.tables",
    "pack": "packedbag.ops.packing",
    "save": "packedbag.io.tables",
    "unpack": "packedbag.ops.packing",
    "verify": "packedbag.io.tables",
}
_MODULES = ("backends", "functional", "optim")

__all__ = [
    "BinaryEmbeddingBag",
    "PackedBagError",
    "PackedEmbedding",
    "PackedEmbeddingBag",
    "PackedTable",
    "backends",
    "check_cuda",
    "functional",
    "load",
    "optim",
    "pack",
    "save",
    "unpack",
    "verify",
]

safe_loading.allow()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
