"""A table from every format that is read into every format: what survives, and what the others have of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedTable
from packedbag.io.formats import FORMATS, Format
from tests.io.tables import READABLE, assert_equal, every_code, every_format, skip_unless_installed, table

every_scale = pytest.mark.parametrize("scale", [None, "table", "row"])
every_target = pytest.mark.parametrize("target", READABLE, ids=[each.name for each in READABLE])


def opened(folder: Path, form: Format, scale: str | None, bits: int, code: str) -> tuple[PackedTable, PackedTable]:
    """Return a table as it was made, and as a file of a format has it."""
    if code == "binary" and scale == "row":
        pytest.skip("there are no such tables")
    skip_unless_installed(form)
    made = table(50, 64, scale, bits=bits, code=code, mode="mean", padding_idx=3)
    packedbag.save(made, folder / f"source{form.suffixes[0]}")
    return made, packedbag.load(folder / f"source{form.suffixes[0]}")


@every_format
@every_target
@every_code
@every_scale
def test_all_that_is_said_of_a_table_survives_in_every_format_that_is_read(
    tmp_path: Path, form: Format, target: Format, bits: int, code: str, scale: str | None
) -> None:
    skip_unless_installed(target)
    made, source = opened(tmp_path, form, scale, bits, code)
    path = tmp_path / f"target{target.suffixes[0]}"
    packedbag.save(source, path)
    found = packedbag.load(path, verify=True)
    assert_equal(found, made)
    indices = np.array([[3, 4, 7], [0, 49, 49]])
    np.testing.assert_array_equal(found.bag(indices), made.bag(indices))


@every_format
@every_code
@every_scale
def test_fp32_has_a_column_a_value_and_int8_and_bools_one_a_bit(
    tmp_path: Path, form: Format, bits: int, code: str, scale: str | None
) -> None:
    made, source = opened(tmp_path, form, scale, bits, code)
    columns = packedbag.unpack(made.words, 64)
    scales = 1 if made.scale is None else made.scale.reshape(-1, 1)
    weights = 2.0 ** np.arange(bits) if code == "binary" else np.ones(bits)
    rows = (columns * 2.0 - 1).reshape(50, -1, bits) @ weights.astype(np.float32) / np.float32(weights.sum())
    expected = {"fp32": rows.astype(np.float32) * scales, "int8": columns * 2.0 - 1, "bool": columns}
    if made.scale is None:
        np.testing.assert_array_equal(expected["fp32"], made.rows(np.arange(50), padding_idx=None))
    for name, values in expected.items():
        packedbag.save(source, tmp_path / "t.pt", format=name)
        state = torch.load(tmp_path / "t.pt", weights_only=True)
        assert state["weight"].shape == (50, 64 // bits if name == "fp32" else 64)
        np.testing.assert_array_equal(state["weight"].numpy().astype(np.float32), values.astype(np.float32))
        assert ("scale" in state) == (scale is not None and name != "fp32")


@every_format
@every_code
def test_search_libraries_get_the_bits_of_rows(tmp_path: Path, form: Format, bits: int, code: str) -> None:
    faiss = pytest.importorskip("faiss")
    made, source = opened(tmp_path, form, None, bits, code)
    packedbag.save(source, tmp_path / "t.faiss")
    index = faiss.read_index_binary(str(tmp_path / "t.faiss"))
    assert (index.ntotal, index.d) == (50, 64)
    np.testing.assert_array_equal(faiss.vector_to_array(index.xb).view("<u4").reshape(50, 2), made.words)


def test_every_format_has_its_place_above() -> None:
    others = {each.name for each in FORMATS} - {each.name for each in READABLE}
    assert others == {"faiss", "usearch", "onnx", "fp32", "int8", "bool"}
