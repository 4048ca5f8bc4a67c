"""A file of each format as its versions were first written: they must be readable for ever.

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
#: By the version that they are written as.
KINDS_OF = {1: ("plain", "table_scale", "row_scale"), 2: ("binary",)}
KINDS = {kind: version for version, kinds in KINDS_OF.items() for kind in kinds}


def golden(kind: str) -> PackedTable:
    """Return the table of a golden file, made without a random generator, whose numbers may change."""
    rows = {"plain": 3, "table_scale": 1, "row_scale": 7, "binary": 5}[kind]
    words = (np.arange(rows * 2, dtype=np.uint64).reshape(rows, 2) * 2654435761 % 2**32).astype(np.uint32)
    words[:, 1] &= 0xF  # D = 36
    scale = {"plain": None, "table_scale": 0.1, "row_scale": np.arange(rows) / 7 - 0.5, "binary": 0.3}[kind]
    bits, code = 4 if kind in ("row_scale", "binary") else 1, "binary" if kind == "binary" else "thermometer"
    metadata = {"mode": "mean", "padding_idx": 0, "field": "Stra\u00dfe \U0001f6d2"}
    return PackedTable(words, 36, scale, metadata, bits_per_value=bits, code=code)


def path_of(form: Format, kind: str) -> Path:
    return FOLDER / f"{kind}.v{KINDS[kind]}{form.suffixes[0]}"


@every_format
@pytest.mark.parametrize("kind", KINDS)
def test_a_golden_file_is_read(form: Format, kind: str) -> None:
    skip_unless_installed(form)
    assert_equal(packedbag.load(path_of(form, kind), verify=True), golden(kind))
    assert list(describe(path_of(form, kind))) == ["user.history"]


@every_format
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_written_as_it_was_then(tmp_path: Path, form: Format, kind: str) -> None:
    """A reader of version 1 opens what is written today, but for tables that it would misread."""
    if form.extra:
        pytest.skip("its bytes are those of a library's version")
    packedbag.save({"user.history": golden(kind)}, tmp_path / path_of(form, kind).name)
    for each in tmp_path.iterdir():
        assert each.read_bytes() == (FOLDER / each.name).read_bytes()


def test_values_of_a_golden_file_are_those_of_its_code() -> None:
    table = packedbag.load(FOLDER / "binary.v2.pbag")
    signs = np.where(packedbag.unpack(table.words, 36), 1.0, -1.0)
    expected = signs.reshape(5, 9, 4) @ [1, 2, 4, 8] / 15 * np.float32(0.3)
    np.testing.assert_allclose(table.rows(np.arange(5), padding_idx=None), expected, rtol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_several_tables_of_a_golden_file_are_read(version: int) -> None:
    opened = packedbag.load(several_of(version), verify=True)
    assert list(opened) == sorted(kind for kind, since in KINDS.items() if since <= version)
    for kind, found in opened.items():
        assert_equal(found, golden(kind))


def several_of(version: int) -> Path:
    return FOLDER / f"several.v{version}.safetensors"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in READABLE:
        for kind in KINDS:
            if not path_of(each, kind).exists():
                packedbag.save({"user.history": golden(kind)}, path_of(each, kind))
    for version in KINDS_OF:
        if not several_of(version).exists():
            kinds = [kind for kind, since in KINDS.items() if since <= version]
            packedbag.save({kind: golden(kind) for kind in kinds}, several_of(version))
