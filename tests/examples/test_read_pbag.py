"""The C program that maps a .pbag file reads what Python wrote."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import packedbag
from tests.io.tables import every_scale, table

SOURCE = Path(__file__).parents[2] / "examples" / "read_pbag.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("reader") / "read_pbag"
    subprocess.run([COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


@every_scale
@pytest.mark.parametrize("dim", [1, 32, 33, 100])
def test_the_reader_in_c_prints_each_row_and_its_scale(
    tmp_path: Path, reader: Path, scale: str | None, dim: int
) -> None:
    written = table(20, dim, scale)
    packedbag.save(written, tmp_path / "t.pbag")
    scales = None if written.scale is None else np.broadcast_to(written.scale, 20)
    unscaled = packedbag.PackedTable(written.words, dim)
    for row in (0, 7, 19):
        done = subprocess.run([reader, tmp_path / "t.pbag", str(row)], capture_output=True, text=True, check=True)
        signs, *rest = done.stdout.split()
        assert [1.0 if sign == "+" else -1.0 for sign in signs] == unscaled.rows(np.int64(row)).tolist()
        assert [float(text) for text in rest] == pytest.approx([] if scales is None else [scales[row]], rel=1e-5)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("bits", "code"), [(4, "thermometer"), (32, "thermometer"), (2, "binary"), (4, "binary"), (8, "binary")]
)
def test_the_reader_in_c_prints_the_values_that_bits_make(
    tmp_path: Path, reader: Path, scale: float | None, bits: int, code: str
) -> None:
    written = packedbag.PackedTable(table(20, 96).words, 96, scale, bits_per_value=bits, code=code)
    packedbag.save(written, tmp_path / "t.pbag")
    for row in (0, 19):
        done = subprocess.run([reader, tmp_path / "t.pbag", str(row)], capture_output=True, text=True, check=True)
        _, values = done.stdout.splitlines()
        found = [float(text) for text in values.split(" ")]
        np.testing.assert_allclose(found, written.rows(np.int64(row)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("place", "value"), [(8, 0), (8, 3), (100, 2)])
def test_the_reader_in_c_refuses_versions_and_codes_it_does_not_know(
    tmp_path: Path, reader: Path, place: int, value: int
) -> None:
    packedbag.save(packedbag.PackedTable(table().words, 40, bits_per_value=4, code="binary"), tmp_path / "t.pbag")
    content = bytearray((tmp_path / "t.pbag").read_bytes())
    content[place : place + 4] = value.to_bytes(4, "little")
    (tmp_path / "t.pbag").write_bytes(content)
    done = subprocess.run([reader, tmp_path / "t.pbag", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no whole .pbag file of version 1 or 2" in done.stderr


def test_the_reader_in_c_is_as_long_as_its_page_says() -> None:
    assert len(SOURCE.read_text().splitlines()) < 50


def test_the_reader_in_c_refuses_what_is_no_such_file(tmp_path: Path, reader: Path) -> None:
    packedbag.save(table(), tmp_path / "t.pbag")
    content = (tmp_path / "t.pbag").read_bytes()
    (tmp_path / "cut.pbag").write_bytes(content[:-4])
    (tmp_path / "other.pbag").write_bytes(b"x" * 5000)
    for name, row in (("cut.pbag", 0), ("other.pbag", 0), ("t.pbag", 5), ("none.pbag", 0)):
        done = subprocess.run([reader, tmp_path / name, str(row)], capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert done.stderr
