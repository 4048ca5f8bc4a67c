"""Formats that are written for others, each read back by the library it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedEmbeddingBag, PackedTable
from packedbag.core.errors import ArgumentError, MissingExtraError
from packedbag.io import byte_rows, dense_tensor, onnx_graph
from packedbag.io.formats import FORMATS, Format
from packedbag.report import memory
from packedbag.serving import hamming_topk
from tests.io.tables import every_scale, table

EXPORTS = [each for each in FORMATS if not each.readable]
every_dim = pytest.mark.parametrize("dim", [1, 7, 8, 31, 32, 33, 100, 128, 257])


def with_tail(rows: int, dim: int) -> PackedTable:
    """Return a table whose bits beyond D are set: they must not count."""
    return PackedTable(np.random.default_rng(dim).integers(0, 2**32, (rows, -(-dim // 32)), np.uint32), dim)


def queries_of(made: PackedTable) -> np.ndarray:
    ((_, rows),) = byte_rows.byte_rows(made)
    return rows


# Search libraries ------------------------------------------------------------------------------------------------


@every_dim
def test_faiss_finds_our_distances(tmp_path: Path, dim: int) -> None:
    faiss = pytest.importorskip("faiss")
    made = with_tail(300, dim)
    packedbag.save(made, tmp_path / "t.faiss")
    index = faiss.read_index_binary(str(tmp_path / "t.faiss"))
    assert (index.ntotal, index.d) == (300, -(-dim // 8) * 8)
    found, _ = index.search(queries_of(made)[:5], 300)
    np.testing.assert_array_equal(found, hamming_topk(made, made.words[:5], 300)[0])


@every_dim
def test_usearch_finds_our_distances(tmp_path: Path, dim: int) -> None:
    usearch = pytest.importorskip("usearch.index")
    made = with_tail(300, dim)
    packedbag.save(made, tmp_path / "t.usearch")
    index = usearch.Index.restore(str(tmp_path / "t.usearch"))
    assert len(index) == 300
    for number in range(3):
        matches = index.search(queries_of(made)[number], 300, exact=True)
        distances = np.empty(300)
        distances[matches.keys] = matches.distances
        order = hamming_topk(made, made.words[number], 300)
        np.testing.assert_array_equal(distances[order[1]], order[0])


def test_tables_go_to_search_libraries_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss, usearch = pytest.importorskip("faiss"), pytest.importorskip("usearch.index")
    made = with_tail(50, 40)
    expected = queries_of(made)
    monkeypatch.setattr(byte_rows, "PIECE", 8 * 7)
    packedbag.save(made, tmp_path / "t.faiss")
    packedbag.save(made, tmp_path / "t.usearch")
    index = faiss.read_index_binary(str(tmp_path / "t.faiss"))
    np.testing.assert_array_equal(faiss.vector_to_array(index.xb).reshape(50, 5), expected)
    keys = usearch.Index.restore(str(tmp_path / "t.usearch")).search(expected[33], 1, exact=True).keys
    assert keys[0] == 33


# ONNX ------------------------------------------------------------------------------------------------------------


def session_of(path: Path) -> Any:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(path), full_check=True)
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize(("scale", "bits"), [(None, 1), ("table", 1), ("row", 1), (None, 4), ("table", 4), ("row", 4)])
@pytest.mark.parametrize("dim", [32, 100])
def test_an_onnx_graph_gives_the_values_of_the_module(
    tmp_path: Path, mode: str, padding_idx: int | None, scale: str | None, bits: int, dim: int
) -> None:
    pytest.importorskip("onnx")
    if mode in ("majority", "max") and (scale == "row" or bits > 1):
        pytest.skip("modules have no such combination")
    module = PackedEmbeddingBag(50, dim, mode=mode, padding_idx=padding_idx, scale=scale, bits_per_value=bits)
    if module.scale is not None:
        torch.nn.init.normal_(module.scale.data)
    packedbag.save(module, tmp_path / "t.onnx")
    session = session_of(tmp_path / "t.onnx")
    random = np.random.default_rng(0)
    for shape in ((9, 7), (3, 1), (1, 40), (2, 0), (0, 5)):
        indices = random.integers(0, 50, shape)
        indices[: shape[0] // 3] = 3  # bags of padding alone, where it is padding
        (found,) = session.run(None, {"indices": indices})
        expected = module.to_table().bag(indices)
        assert found.dtype == np.float32
        if scale == "row" or (bits > 1 and (scale or mode == "mean")):  # sums of fractions, in another order
            largest = 1.0 if module.scale is None else float(module.scale.detach().abs().max())
            terms = shape[1] * largest  # each side is within 1e-6 of what its terms add up to without their signs
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * terms)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [None, "table"])
@pytest.mark.parametrize("dim", [8, 64, 256])
def test_an_onnx_graph_gives_binary_values_bit_for_bit(
    tmp_path: Path, mode: str, bits: int, scale: str | None, dim: int
) -> None:
    pytest.importorskip("onnx")
    made = table(50, dim, scale, bits=bits, code="binary", mode=mode, padding_idx=3)
    packedbag.save(made, tmp_path / "t.onnx")
    session = session_of(tmp_path / "t.onnx")
    for shape in ((9, 7), (3, 1), (1, 40), (2, 0), (0, 5)):
        indices = np.random.default_rng(0).integers(0, 50, shape)
        indices[: shape[0] // 3] = 3
        (found,) = session.run(None, {"indices": indices})
        np.testing.assert_array_equal(found, made.bag(indices))


def test_a_table_too_large_for_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_graph, "LARGEST", 100)
    with pytest.raises(ArgumentError, match=r"source is a table of 160 bytes; it must be at most 100 in ONNX\. Split"):
        packedbag.save(table(20, 64), tmp_path / "t.onnx")
    assert not list(tmp_path.iterdir())


# Unpacked --------------------------------------------------------------------------------------------------------


@every_scale
@pytest.mark.parametrize("bits", [1, 4])
def test_fp32_is_the_state_of_an_embedding_bag(tmp_path: Path, scale: str | None, bits: int) -> None:
    module = PackedEmbeddingBag(50, 96, mode="mean", padding_idx=3, scale=scale, bits_per_value=bits)
    if module.scale is not None:
        torch.nn.init.normal_(module.scale.data)
    packedbag.save({"a": module.to_table()}, tmp_path / "t.pt", format="fp32")
    state = torch.load(tmp_path / "t.pt", weights_only=True)
    peer = torch.nn.ModuleDict({"a": torch.nn.EmbeddingBag(50, 96 // bits, mode="mean", padding_idx=3)})
    peer.load_state_dict(state)
    indices = torch.randint(50, (20, 7))
    torch.testing.assert_close(peer["a"](indices), module(indices), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [None, "table"])
def test_fp32_has_binary_values_and_others_have_their_bits(tmp_path: Path, scale: str | None, bits: int) -> None:
    made = table(50, 96, scale, bits=bits, code="binary", mode="mean", padding_idx=3)
    packedbag.save(made, tmp_path / "t.pt", format="fp32")
    state = torch.load(tmp_path / "t.pt", weights_only=True)
    rows = made.rows(np.arange(50), padding_idx=None)
    np.testing.assert_allclose(state["weight"].cpu().numpy(), rows, rtol=1e-6, atol=1e-7)
    peer = torch.nn.EmbeddingBag(50, 96 // bits, mode="mean", padding_idx=3)
    peer.load_state_dict(state)
    indices = np.random.default_rng(0).integers(0, 50, (20, 7))
    found = peer(torch.tensor(indices)).detach().cpu().numpy()
    np.testing.assert_allclose(found, made.bag(indices), rtol=1e-5, atol=1e-6)
    packedbag.save(made, tmp_path / "bits.pt", format="bool")
    assert torch.load(tmp_path / "bits.pt", weights_only=True)["weight"].shape == (50, 96)


@every_scale
@pytest.mark.parametrize("form", ["bool", "int8"])
def test_bools_and_int8_are_the_bits(tmp_path: Path, scale: str | None, form: str) -> None:
    made = table(30, 37, scale)
    packedbag.save({"a": made, "": table(5, 8)}, tmp_path / "t.pt", format=form)
    state = torch.load(tmp_path / "t.pt", weights_only=True)
    weight = state["a.weight"]
    assert weight.dtype == {"bool": torch.bool, "int8": torch.int8}[form]
    assert torch.equal(weight > 0, torch.from_numpy(packedbag.unpack(made.words, 37) > 0))
    assert sorted(state) == sorted(["a.weight", "weight", *(["a.scale"] if scale else [])])
    if scale:
        np.testing.assert_array_equal(state["a.scale"].numpy(), made.scale)


def test_unpacked_tables_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(50, 37, "row")
    packedbag.save(made, tmp_path / "whole.pt", format="fp32")
    monkeypatch.setattr("packedbag.io.unpacked.PIECE", 4 * 37 * 7)
    packedbag.save(made, tmp_path / "pieces.pt", format="fp32")
    assert (tmp_path / "whole.pt").read_bytes() == (tmp_path / "pieces.pt").read_bytes()


def test_an_unpacked_table_never_stands_in_memory(tmp_path: Path) -> None:
    if not memory.reset_peak():
        pytest.skip("no /proc/self/clear_refs")
    made = PackedTable(np.zeros((500_000, 4), np.uint32), 128)
    packedbag.save(made, tmp_path / "t.pt", format="int8")  # torch's pickler, imported
    memory.reset_peak()
    before = memory.resident_bytes()
    packedbag.save(made, tmp_path / "t.pt", format="fp32")
    assert (tmp_path / "t.pt").stat().st_size > 240 << 20
    assert memory.peak_bytes() - before < 64 << 20
    assert dense_tensor.PIECE < 64 << 20


# All -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", EXPORTS, ids=[each.name for each in EXPORTS])
def test_what_is_written_for_others_is_not_read(tmp_path: Path, form: Format) -> None:
    with pytest.raises(
        ArgumentError, match=f"format is '{form.name}'; it must be 'safetensors', 'pbag', .* other programs"
    ):
        packedbag.load(tmp_path / "t", format=form.name)


@pytest.mark.parametrize("form", EXPORTS, ids=[each.name for each in EXPORTS])
def test_an_export_that_fails_leaves_the_old_file(
    tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form.extra:
        pytest.importorskip(form.name)
    path = tmp_path / "t"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        packedbag.save(table(), path, format=form.name)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("suffix", "library", "extra"),
    [("faiss", "faiss", "search"), ("usearch", "usearch.index", "usearch"), ("onnx", "onnx", "onnx"),
     ("arrow", "pyarrow", "io"), ("parquet", "pyarrow", "io")],
)  # fmt: skip
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'packedbag\[{extra}\]'"):
        packedbag.save(table(), tmp_path / f"t.{suffix}")
    assert not list(tmp_path.iterdir())


def test_formats_import_no_library_before_they_are_used() -> None:
    heavy = "{'faiss', 'usearch', 'onnx', 'pyarrow', 'torch', 'safetensors'}"
    script = f"import sys, packedbag; packedbag.save; assert not {heavy} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
