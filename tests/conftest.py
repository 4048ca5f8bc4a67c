"""What every test runs under: examples are the same in every run unless HYPOTHESIS_PROFILE=explore.

``--device`` lets another device than the CPU serve the modules, operators and optimizers (tests/nn, ops, optim):
``emulated``, CUDA kernels run on the CPU, or ``cuda``, a GPU. ``--hosted`` gives torch CUDA devices in the host's
memory (tests/cuda_on_cpu/host_device), where what is for a GPU then runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

# Before torch is imported: several test processes share the cores, and OpenMP threads that spin while they wait
# take them from each other (a trainer's tests: 340 s spinning, 34 s sleeping).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import HealthCheck, settings

# A shared or emulated machine may take any time for an example, so slowness alone fails nothing.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("repeat", max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.register_profile("small", max_examples=5, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device`` and ``--hosted``."""
    parser.addoption("--device", choices=("cpu", "emulated", "cuda"), default="cpu", help="what computes")
    parser.addoption("--hosted", action="store_true", help="CUDA devices in the host's memory, without a GPU")


def pytest_configure(config: pytest.Config) -> None:
    """Make tensors on the GPU by default, those of the modules of tests included, where it is under test."""
    about = "about what the CPU alone does; left out with another --device, or with cuda alone"
    config.addinivalue_line("markers", f"host(emulated=False): {about}")
    if config.getoption("--hosted"):
        from tests.cuda_on_cpu.host_device.install import install

        install()  # before torch is imported
        import torch

        # Backward runs in a thread of its own, which takes the number that is set before it begins, and no later one.
        torch.set_num_threads(1)
    if config.getoption("--device") == "cuda":
        import torch

        torch.set_default_device("cuda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, by name, what is about the CPU."""
    device = config.getoption("--device")
    if device != "cpu":
        for item in items:
            mark = item.get_closest_marker("host")
            if mark and not (device == "emulated" and mark.kwargs.get("emulated")):
                item.add_marker(pytest.mark.skip(reason=f"about the CPU, not --device={device}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """End the run where a failure has left a GPU unusable: all tests after it would fail, and hide it."""
    report = yield
    torch = sys.modules.get("torch")
    if report.failed and torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            pytest.exit(f"the GPU is lost to this process since {item.nodeid}: {why}", returncode=3)
    return report


@pytest.fixture(autouse=True)
def device_under_test(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Let the emulated CUDA backend serve tensors on the CPU with ``--device emulated``."""
    if request.config.getoption("--device") != "emulated":
        yield
        return
    from tests.cuda_on_cpu.machine import serving_the_cpu

    with serving_the_cpu() as backend:
        yield backend
