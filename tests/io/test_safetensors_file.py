"""`packedbag.io.safetensors_file`."""

import json
import sys

import numpy as np
import pytest

from packedbag import PackedTable
from packedbag.core.errors import DataError, MissingExtraError, PackedBagError
from packedbag.io.safetensors_file import load, save

safetensors_numpy = pytest.importorskip("safetensors.numpy")


def table(scale=None, rows=5):
    words = np.random.default_rng(1).integers(0, 2**32, (rows, 2), np.uint32)
    words[:, 1] &= 0xFF
    return PackedTable(words, 40, scale=scale, metadata={"mode": "mean", "padding_idx": None})


@pytest.mark.parametrize("scale", [None, np.float32(0.5), np.arange(5, dtype=np.float32)])
def test_a_table_comes_back_as_it_was(tmp_path, scale):
    before = table(scale)
    save(tmp_path / "t.safetensors", before)
    after = load(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(after.words, before.words)
    assert after.words.dtype == np.uint32
    assert (after.embedding_dim, after.metadata) == (40, before.metadata)
    if scale is None:
        assert after.scale is None
    else:
        np.testing.assert_array_equal(after.scale, before.scale)


def test_an_empty_table_comes_back(tmp_path):
    save(tmp_path / "t.safetensors", table(rows=0))
    assert load(tmp_path / "t.safetensors").num_embeddings == 0


def test_equal_tables_make_equal_files(tmp_path):
    for name in "abcdefgh":
        save(tmp_path / name, table())
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


def test_any_reader_of_safetensors_finds_the_words(tmp_path):
    before = table()
    save(tmp_path / "t.safetensors", before)
    found = safetensors_numpy.load_file(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(found["weight"], before.words)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    save(path, table())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"t\.safetensors: is not a whole safetensors file"):
        load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(DataError, match="there is no such file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is not a whole safetensors file"):
        load(path)
    safetensors_numpy.save_file({"weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(DataError, match="but not a packed table"):
        load(path)


def test_a_file_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"version": 2, "anything": "else"})
    safetensors_numpy.save_file({"weight": table().words}, path, metadata={"packedbag.table": header})
    with pytest.raises(DataError, match=r"has format version 2; this packedbag reads 1\. Upgrade packedbag"):
        load(path)


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "embedding_dim": "x"}'])
def test_metadata_that_are_no_tables_are_refused(tmp_path, header):
    path = tmp_path / "t.safetensors"
    safetensors_numpy.save_file({"weight": table().words}, path, metadata={"packedbag.table": header})
    with pytest.raises(DataError, match="has metadata that are no packed table's"):
        load(path)


def test_words_that_do_not_fit_the_dimension_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"version": 1, "embedding_dim": 100, "metadata": {}})
    safetensors_numpy.save_file({"weight": table().words}, path, metadata={"packedbag.table": header})
    with pytest.raises(PackedBagError, match=r"must be \(V, 4\) for embedding_dim=100"):
        load(path)


def test_without_safetensors_tables_are_written_and_the_extra_to_read_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    save(tmp_path / "t.safetensors", table())
    with pytest.raises(MissingExtraError, match=r"Reading .* Run: pip install 'packedbag\[io\]'"):
        load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("scale", [None, np.float32(0.5), "row"])
@pytest.mark.parametrize("field", ["user", 'a "quoted" \u00fcser\n'])
def test_the_bytes_are_those_of_the_writer_of_safetensors(tmp_path, rows, scale, field):
    before = table(np.arange(rows, dtype=np.float32) if isinstance(scale, str) else scale, rows)
    before.metadata["field"] = field
    save(tmp_path / "t.safetensors", before)
    own = {"version": 1, "embedding_dim": 40, "metadata": before.metadata}
    arrays = {"weight": before.words} | ({} if before.scale is None else {"scale": before.scale})
    expected = safetensors_numpy.save(arrays, metadata={"packedbag.table": json.dumps(own, sort_keys=True)})
    assert (tmp_path / "t.safetensors").read_bytes() == expected


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("scale", [None, np.float32(0.5), "row"])
def test_a_mapped_table_is_the_same_table(tmp_path, rows, scale):
    before = table(np.arange(rows, dtype=np.float32) if isinstance(scale, str) else scale, rows)
    save(tmp_path / "t.safetensors", before)
    after = load(tmp_path / "t.safetensors", mmap=True)
    np.testing.assert_array_equal(after.words, before.words)
    assert (after.embedding_dim, after.metadata) == (40, before.metadata)
    if before.scale is None:
        assert after.scale is None
    else:
        np.testing.assert_array_equal(after.scale, before.scale)
    indices = np.zeros((min(rows, 1), 3), np.int64)
    np.testing.assert_array_equal(after.bag(indices), before.bag(indices))


def test_a_mapped_table_stays_in_the_file_and_cannot_be_written(tmp_path):
    save(tmp_path / "t.safetensors", table())
    words = load(tmp_path / "t.safetensors", mmap=True).words
    assert isinstance(words, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        words[0, 0] = 1


def test_a_mapped_table_outlives_a_new_file_of_its_name(tmp_path):
    save(tmp_path / "t.safetensors", table())
    mapped = load(tmp_path / "t.safetensors", mmap=True)
    save(tmp_path / "t.safetensors", table(rows=0))
    np.testing.assert_array_equal(mapped.words, table().words)


@pytest.mark.parametrize("mmap", [False, True])
def test_weights_of_another_dtype_are_refused(tmp_path, mmap):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"version": 1, "embedding_dim": 40, "metadata": {}})
    safetensors_numpy.save_file({"weight": np.zeros((2, 2), np.int64)}, path, metadata={"packedbag.table": header})
    with pytest.raises(PackedBagError, match="I64" if mmap else "int64"):
        load(path, mmap=mmap)


def test_a_saved_table_is_not_copied_in_memory(tmp_path, monkeypatch):
    from packedbag.report import memory

    before = PackedTable(np.full((1 << 22, 4), 7, np.uint32), 128)
    held = memory.resident_bytes() if memory.reset_peak() else pytest.skip("no /proc/self/clear_refs")
    save(tmp_path / "t.safetensors", before)
    after = load(tmp_path / "t.safetensors", mmap=True)
    assert memory.peak_bytes() - held < before.nbytes / 4
    assert after.words[-1, -1] == 7
