"""A file of each format as its version 1 was first written: they must be readable for ever.

`python -m tests.io.test_golden_files` writes those that are not there yet; one that is there is never written again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import packedbag
from packedbag import PackedTable
from packedbag.io.formats import Format
from packedbag.io.tables import describe
from tests.io.tables import READABLE, assert_equal, every_format, skip_unless_installed

FOLDER = Path(__file__).parents[1] / "golden"
KINDS = ("plain", "table_scale", "row_scale")


def golden(kind: str) -> PackedTable:
    """Return the table of a golden file, made without a random generator, whose numbers may change."""
    rows = {"plain": 3, "table_scale": 1, "row_scale": 7}[kind]
    words = (np.arange(rows * 2, dtype=np.uint64).reshape(rows, 2) * 2654435761 % 2**32).astype(np.uint32)
    words[:, 1] &= 0xF  # D = 36
    scale = {"plain": None, "table_scale": 0.1, "row_scale": np.arange(rows) / 7 - 0.5}[kind]
    bits = 4 if kind == "row_scale" else 1
    metadata = {"mode": "mean", "padding_idx": 0, "field": "Stra\u00dfe \U0001f6d2"}
    return PackedTable(words, 36, scale, metadata, bits_per_value=bits)


def path_of(form: Format, kind: str) -> Path:
    return FOLDER / f"{kind}.v1{form.suffixes[0]}"


@every_format
@pytest.mark.parametrize("kind", KINDS)
def test_a_golden_file_is_read(form: Format, kind: str) -> None:
    skip_unless_installed(form)
    assert_equal(packedbag.load(path_of(form, kind), verify=True), golden(kind))
    assert list(describe(path_of(form, kind))) == ["user.history"]


def test_several_tables_of_a_golden_file_are_read() -> None:
    opened = packedbag.load(FOLDER / "several.v1.safetensors", verify=True)
    assert list(opened) == sorted(KINDS)
    for kind in KINDS:
        assert_equal(opened[kind], golden(kind))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in READABLE:
        for kind in KINDS:
            if not path_of(each, kind).exists():
                packedbag.save({"user.history": golden(kind)}, path_of(each, kind))
    (several,) = [each for each in READABLE if each.several]
    if not path_of(several, "several").exists():
        packedbag.save({kind: golden(kind) for kind in KINDS}, path_of(several, "several"))
