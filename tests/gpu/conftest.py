"""Tests of this folder need a GPU and CuPy; where one is missing they are skipped, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from packedbag.backends import missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason why the CUDA backend cannot run."""
    reason = missing("cupy_cuda")
    if reason:
        for item in items:
            if Path(__file__).parent in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason=f"cupy_cuda: {reason}"))
