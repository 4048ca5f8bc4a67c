"""What the tests of the adapters share."""

import pytest


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables into pieces of a few rows, so that tests cross their borders."""
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.bit_rows.CHUNK_WEIGHTS", 300)
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.bit_rows.CHUNK_ROWS", 4)


@pytest.fixture
def small_file_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables that are read from files or written to them into pieces of a few rows."""
    for module in ("dense_tensor", "torch_file", "torch_writer"):
        monkeypatch.setattr(f"packedbag.io.{module}.PIECE", 600)
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.forms.PIECE", 600)
