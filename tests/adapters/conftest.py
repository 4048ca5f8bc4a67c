"""What the tests of the adapters share."""

import pytest


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables into pieces of a few rows, so that tests cross their borders."""
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.bit_rows.CHUNK_WEIGHTS", 300)
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.bit_rows.CHUNK_ROWS", 4)
