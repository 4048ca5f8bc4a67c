"""Which backends exist, which can run here, and which one to use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from packedbag.backends.protocol import Backend
from packedbag.core.errors import ArgumentError, BackendError

#: Forces a backend by name, for tests and for finding out which one is at fault.
ENVIRONMENT = "PACKEDBAG_BACKEND"


@dataclass(frozen=True)
class Entry:
    """A row of the registry: the module that holds ``BACKEND`` and ``missing()``, and where it can run."""

    module: str
    devices: tuple[str, ...]  # () is every device
    arrays: str

    def serves(self, kind: str) -> bool:
        """Return whether it is made for devices of this ``kind``, such as "cpu"."""
        return not self.devices or kind in self.devices


#: In order of preference. A backend is one row here and one file beside this one.
REGISTRY: dict[str, Entry] = {
    "native_cpu": Entry("packedbag.backends.native_cpu", ("cpu",), "numpy"),
    "cupy_cuda": Entry("packedbag.backends.cupy_cuda", ("cuda",), "torch"),
    "eager": Entry("packedbag.backends.eager", (), "torch"),
    "reference": Entry("packedbag.backends.reference", ("cpu",), "numpy"),
}


@functools.cache
def missing(name: str) -> str | None:
    """Return why backend ``name`` cannot run here, or None when it can."""
    if name not in REGISTRY:
        raise BackendError(name, "does not exist", ", ".join(REGISTRY))
    if REGISTRY[name].arrays == "torch" and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    reason: str | None = importlib.import_module(REGISTRY[name].module).missing()
    return reason


def available(device: str = "cpu") -> tuple[str, ...]:
    """Return the names of the backends that can run on ``device`` ("cpu", "cuda", ...), best first."""
    kind = str(device).split(":")[0]
    return tuple(name for name, entry in REGISTRY.items() if entry.serves(kind) and not missing(name))


@functools.cache
def get(name: str) -> Backend:
    """Return backend ``name``, or raise `BackendError` with the reason why it cannot run here."""
    reason = missing(name)
    if reason:
        raise BackendError(name, f"cannot run here: {reason}", ", ".join(available()) or "none")
    backend: Backend = importlib.import_module(REGISTRY[name].module).BACKEND
    return backend


def select(device: str = "cpu", *, arrays: str | None = None) -> Backend:
    """Return the backend to use on ``device``: the forced one, else the best available.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        arrays: "numpy" leaves out the backends that need torch, unless one of them is forced.

    Raises:
        BackendError: the forced backend does not exist or cannot run on ``device``, or none can.
    """
    return _select(str(device), arrays, _forced())


# os.environ.get raises and catches where the variable is not set, and costs 0.7 us, as much as a bag of 20 rows in
# the kernel. The dictionary behind it costs 0.1 us, and putenv, setenv and monkeypatch all write through to it.
_KEY: Any = os.environ.encodekey(ENVIRONMENT) if hasattr(os.environ, "encodekey") else ENVIRONMENT


def _forced() -> str | None:
    """Return the value of ``PACKEDBAG_BACKEND`` now, or None."""
    try:
        if _KEY not in os.environ._data:  # type: ignore[attr-defined]
            return None
    except AttributeError:  # another Python, or a plain dictionary in the place of os.environ
        pass
    return os.environ.get(ENVIRONMENT)


@functools.cache
def _select(device: str, arrays: str | None, forced: str | None) -> Backend:
    kind = device.split(":")[0]
    if forced:
        backend = get(forced)
        if not REGISTRY[forced].serves(kind):
            raise BackendError(forced, f"does not run on {kind!r}", ", ".join(available(kind)) or "none")
        return backend
    serving = [name for name, entry in REGISTRY.items() if arrays in (None, entry.arrays) and entry.serves(kind)]
    if not serving:
        raise ArgumentError("device", repr(kind), f"'cpu' for arrays={arrays!r}")
    # One after another: to ask about a backend of torch imports torch, which a NumPy user need not have.
    return get(next((name for name in serving if not missing(name)), serving[0]))
