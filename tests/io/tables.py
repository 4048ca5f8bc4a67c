"""Packed tables of all kinds, and the formats that are read, for the tests of files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packedbag import PackedTable
from packedbag.core.layout import tail_mask, words_per_row
from packedbag.io.formats import FORMATS, Format

READABLE = [each for each in FORMATS if each.readable]
every_format = pytest.mark.parametrize("form", READABLE, ids=[each.name for each in READABLE])
every_code = pytest.mark.parametrize(
    ("bits", "code"), [(1, "thermometer"), (4, "thermometer"), (2, "binary"), (4, "binary"), (8, "binary")]
)
every_scale = pytest.mark.parametrize("scale", [None, "table", "row"])


def table(
    rows: int = 5,
    dim: int = 40,
    scale: str | None = None,
    seed: int = 1,
    bits: int = 1,
    code: str = "thermometer",
    **metadata: Any,
) -> PackedTable:
    """Return a table of random bits, whose scale, if it has one, is random, too."""
    random = np.random.default_rng(seed)
    words = random.integers(0, 2**32, (rows, words_per_row(dim)), np.uint32)
    words[:, -1] &= tail_mask(dim)
    scales = {None: None, "table": np.float32(random.normal()), "row": random.normal(size=rows).astype(np.float32)}
    said = metadata or {"mode": "mean", "padding_idx": None}
    return PackedTable(words, dim, scales[scale], said, bits_per_value=bits, code=code)


def assert_equal(found: PackedTable, expected: PackedTable) -> None:
    np.testing.assert_array_equal(found.words, expected.words)
    assert found.words.dtype == np.uint32
    assert (found.embedding_dim, found.metadata) == (expected.embedding_dim, expected.metadata)
    assert (found.bits_per_value, found.code) == (expected.bits_per_value, expected.code)
    assert (found.scale is None) == (expected.scale is None)
    if expected.scale is not None and found.scale is not None:
        np.testing.assert_array_equal(found.scale, expected.scale)
        assert found.scale.shape == expected.scale.shape


def skip_unless_installed(form: Format) -> None:
    """Skip the test where the format's library is missing."""
    if form.name in ("arrow", "parquet"):
        pytest.importorskip("pyarrow")
