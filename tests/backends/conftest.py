"""Fixtures of the tests of backends. Imports torch late: with ``--hosted`` its devices have to be there before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def few_warps() -> Iterator[None]:
    """Let warps take several rows in the small steps of tests, too, as they do in large ones."""
    from packedbag.backends import cupy_steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_steps, "ENOUGH_WARPS", 3)
        yield
