"""Which backend is chosen, how one is forced, and what is said of one that is missing."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from packedbag import backends
from packedbag.backends import registry
from packedbag.backends.protocol import Backend
from packedbag.core.errors import ArgumentError, BackendError

FUNCTIONS = [name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was found before, and afterwards what a test made it find."""
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)
    caches = (registry.missing, registry.get, registry._select)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def without(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    """Make backend ``name`` say that it is missing."""
    module = importlib.import_module(registry.REGISTRY[name].module)
    monkeypatch.setattr(module, "missing", lambda: reason)


def with_native(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the native backend available, whether it was built or not; return what stands for it."""
    module = importlib.import_module(registry.REGISTRY["native_cpu"].module)
    backend = SimpleNamespace(name="native_cpu", arrays="numpy")
    monkeypatch.setattr(module, "missing", lambda: None)
    # Not setattr: it would first read BACKEND, which loads the library that may not be there.
    monkeypatch.setitem(vars(module), "BACKEND", backend)
    return backend


def test_native_code_comes_before_torch_and_torch_before_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    native = with_native(monkeypatch)
    assert backends.available() == ("native_cpu", "eager", "reference")
    assert backends.select() is native
    assert backends.select("cpu:0", arrays="numpy") is native


def test_cuda_is_served_by_its_kernels_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(registry.REGISTRY["cupy_cuda"].module)
    monkeypatch.setattr(module, "missing", lambda: None)
    assert backends.available("cuda") == ("cupy_cuda", "eager")
    assert backends.select("cuda:1").name == "cupy_cuda"
    assert "cupy_cuda" not in backends.available("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_device_other_than_the_cpu_is_served_by_torch(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    without(monkeypatch, "cupy_cuda", "cupy is not installed")
    assert backends.available(device) == ("eager",)
    assert backends.select(device).name == "eager"


def test_without_native_code_torch_serves_tensors_and_the_oracle_serves_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "native_cpu", "no compiler was found")
    assert backends.available() == ("eager", "reference")
    assert backends.select().name == "eager"
    assert backends.select(arrays="numpy").name == "reference"


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_the_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_native(monkeypatch)
    monkeypatch.setenv("PACKEDBAG_BACKEND", name)
    assert backends.select().name == name
    assert backends.select(arrays="numpy").name == name
    monkeypatch.delenv("PACKEDBAG_BACKEND")
    assert backends.select().name == "native_cpu"


def test_an_empty_environment_variable_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKEDBAG_BACKEND", "")
    assert backends.select().name == backends.available()[0]


def test_forcing_a_name_that_does_not_exist_names_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKEDBAG_BACKEND", "turbo")
    with pytest.raises(BackendError) as caught:
        backends.select()
    assert str(caught.value) == (
        "backend 'turbo' does not exist. Backends: native_cpu, cupy_cuda, eager, reference. "
        "`packedbag doctor` says why one is missing."
    )


def test_forcing_a_missing_backend_says_why_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "native_cpu", "no compiler was found")
    monkeypatch.setenv("PACKEDBAG_BACKEND", "native_cpu")
    with pytest.raises(BackendError) as caught:
        backends.select()
    assert str(caught.value) == (
        "backend 'native_cpu' cannot run here: no compiler was found. Backends: eager, reference. "
        "`packedbag doctor` says why one is missing."
    )


def test_forcing_a_backend_on_a_device_it_does_not_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cupy_cuda", "cupy is not installed")
    monkeypatch.setenv("PACKEDBAG_BACKEND", "reference")
    with pytest.raises(BackendError) as caught:
        backends.select("cuda:0")
    assert str(caught.value) == (
        "backend 'reference' does not run on 'cuda'. Backends: eager. `packedbag doctor` says why one is missing."
    )


def test_the_reason_of_every_backend_is_none_or_a_text() -> None:
    for name in registry.REGISTRY:
        reason = backends.missing(name)
        assert reason is None or (isinstance(reason, str) and reason)
        assert (reason is None) == (name in backends.available())
    assert backends.missing("reference") is None
    assert backends.missing("eager") is None


def test_without_torch_its_backends_are_missing_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    assert backends.missing("eager") == "torch is not installed"
    assert backends.available("cuda") == ()


def test_a_device_that_nothing_serves_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.REGISTRY:
        without(monkeypatch, name, "torch is not installed" if name == "eager" else "it is broken")
    with pytest.raises(BackendError) as caught:
        backends.select("cuda")
    assert str(caught.value) == (
        "backend 'cupy_cuda' cannot run here: it is broken. Backends: none. `packedbag doctor` says why one is missing."
    )


def test_numpy_arrays_live_on_the_cpu_alone() -> None:
    with pytest.raises(ArgumentError) as caught:
        backends.select("cuda", arrays="numpy")
    assert str(caught.value) == "device is 'cuda'; it must be 'cpu' for arrays='numpy'."


def test_a_lookup_of_a_missing_name_is_refused() -> None:
    with pytest.raises(BackendError, match="backend 'turbo' does not exist"):
        backends.missing("turbo")
    with pytest.raises(BackendError, match="backend 'turbo' does not exist"):
        backends.get("turbo")


def test_every_available_backend_has_every_function_of_the_protocol() -> None:
    assert "counter_update" in FUNCTIONS
    for name in backends.available():
        backend = backends.get(name)
        assert backend.name == name
        assert backend.arrays == registry.REGISTRY[name].arrays
        assert all(callable(getattr(backend, function)) for function in FUNCTIONS)


def test_a_backend_is_made_once() -> None:
    assert backends.get("reference") is backends.get("reference")


@pytest.mark.parametrize("forced", ["", "reference"])
def test_choosing_a_backend_for_numpy_does_not_import_torch(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv("PACKEDBAG_BACKEND", forced)
    code = "import sys; from packedbag.backends import select; select(arrays='numpy'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
