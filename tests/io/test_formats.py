"""Every format that is read: round trips, what modules and files answer, lazy opening, errors of the registry."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag, PackedTable
from packedbag.core.errors import ArgumentError, DataError
from packedbag.io.formats import FORMATS, Format, find
from packedbag.io.tables import LazyTables, describe
from tests.io.tables import assert_equal, every_code, every_format, every_scale, skip_unless_installed, table

ROOT = Path(__file__).parents[2]


def path_of(folder: Path, form: Format) -> Path:
    skip_unless_installed(form)
    return folder / f"t{form.suffixes[0]}"


@every_format
@every_scale
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100, 128, 257])
@pytest.mark.parametrize("rows", [0, 1, 100_000])
def test_a_table_comes_back_as_it_was(tmp_path: Path, form: Format, scale: str | None, dim: int, rows: int) -> None:
    path, before = path_of(tmp_path, form), table(rows, dim, scale, mode="sum", field="user\n\u00fc")
    packedbag.save(before, path)
    assert_equal(packedbag.load(path, verify=True), before)
    (stored,) = describe(path).values()
    kind = "table" if scale == "row" and rows == 1 else scale  # which are the same
    assert (stored.num_embeddings, stored.embedding_dim, stored.scale_kind) == (rows, dim, kind)
    assert_equal(stored.load(mmap=False), before)
    assert packedbag.verify(path) == {stored.name: stored.sha256}


@every_format
@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@every_code
@every_scale
def test_what_a_file_serves_equals_what_its_module_answers(
    tmp_path: Path, form: Format, mode: str, padding_idx: int | None, bits: int, code: str, scale: str | None
) -> None:
    if (mode in ("majority", "max") and (scale == "row" or bits > 1)) or (code == "binary" and scale == "row"):
        pytest.skip("modules have no such combination")
    torch.manual_seed(0)
    values = {"bits_per_value": bits, "code": code}
    module = PackedEmbeddingBag(50, 104, mode=mode, padding_idx=padding_idx, scale=scale, **values)
    if module.scale is not None:
        torch.nn.init.normal_(module.scale.data)
    path = path_of(tmp_path, form)
    packedbag.save(module, path)
    indices = torch.randint(50, (20, 7))
    served = packedbag.load(path).bag(indices.cpu().numpy())
    # A GPU adds scaled rows in an order of its own; all else is equal.
    rounding = 1e-5 if indices.is_cuda and scale == "row" else 0
    np.testing.assert_allclose(served, module(indices).detach().cpu().numpy(), rtol=rounding, atol=rounding)
    assert served.shape == (20, 104 // bits)


@every_format
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_rows_that_a_file_serves_equal_those_that_its_module_looks_up(
    tmp_path: Path, form: Format, padding_idx: int | None
) -> None:
    module, path = PackedEmbedding(50, 33, padding_idx=padding_idx, scale="row"), path_of(tmp_path, form)
    packedbag.save(module, path)
    indices = torch.tensor([[3, 4], [0, 49]])
    served = packedbag.load(path).rows(indices.cpu().numpy())
    np.testing.assert_array_equal(served, module(indices).detach().cpu().numpy())
    np.testing.assert_array_equal(packedbag.load(path).rows(np.int64(4)), served[0, 1])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_binary_values_that_a_file_serves_equal_those_that_its_module_looks_up(tmp_path: Path, bits: int) -> None:
    module = PackedEmbedding(50, 64, padding_idx=3, scale="table", bits_per_value=bits, code="binary")
    torch.nn.init.constant_(module.scale, 0.3)
    packedbag.save(module, tmp_path / "t.pbag")
    indices = torch.tensor([[3, 4], [0, 49]])
    served = packedbag.load(tmp_path / "t.pbag").rows(indices.cpu().numpy())
    np.testing.assert_array_equal(served, module(indices).detach().cpu().numpy())


@every_format
def test_equal_tables_make_equal_files(tmp_path: Path, form: Format) -> None:
    path, seen = path_of(tmp_path, form), set()
    for _ in range(3):
        packedbag.save(table(scale="row"), path)
        seen.add(path.read_bytes())
    assert len(seen) == 1


@every_format
def test_bits_per_value_come_back(tmp_path: Path, form: Format) -> None:
    before = PackedTable(table().words, 40, bits_per_value=4)
    packedbag.save(before, path_of(tmp_path, form))
    assert_equal(packedbag.load(path_of(tmp_path, form)), before)


@every_format
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [8, 32, 64, 72, 128, 256])
@pytest.mark.parametrize("scale", [None, "table"])
def test_a_table_of_binary_numbers_comes_back_as_it_was(
    tmp_path: Path, form: Format, bits: int, dim: int, scale: str | None
) -> None:
    path, before = path_of(tmp_path, form), table(50, dim, scale, bits=bits, code="binary")
    packedbag.save({"item": before}, path)
    found = packedbag.load(path, verify=True)
    assert_equal(found, before)
    indices = np.random.default_rng(0).integers(0, 50, (9, 7))
    np.testing.assert_array_equal(found.bag(indices), before.bag(indices))
    (stored,) = describe(path).values()
    assert (stored.name, stored.bits_per_value, stored.code, stored.scale_kind) == ("item", bits, "binary", scale)


@every_format
def test_an_open_table_outlives_a_new_file_of_its_name(tmp_path: Path, form: Format) -> None:
    path = path_of(tmp_path, form)
    packedbag.save(table(5000), path)
    opened = packedbag.load(path)
    packedbag.save(table(5000, seed=2), path)
    np.testing.assert_array_equal(opened.words, table(5000).words)
    np.testing.assert_array_equal(packedbag.load(path).words, table(5000, seed=2).words)


@every_format
def test_an_open_table_cannot_be_written(tmp_path: Path, form: Format) -> None:
    path = path_of(tmp_path, form)
    packedbag.save(table(), path)
    opened = packedbag.load(path)
    if form.name != "parquet":  # which is decoded into memory
        with pytest.raises(ValueError, match="read-only"):
            opened.words[0, 0] = 1


@every_format
def test_threads_and_forked_workers_serve_from_one_map(tmp_path: Path, form: Format) -> None:
    path, before = path_of(tmp_path, form), table(3000, 100, "row")
    packedbag.save(before, path)
    opened, indices = packedbag.load(path), np.random.default_rng(0).integers(0, 3000, (200, 20))
    expected, found = before.bag(indices), {}

    def serve(number: int) -> None:
        found[number] = opened.bag(indices)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(found[number], expected)
    # A fork in a process of its own: this one has threads of torch, which a fork would lose.
    script = (
        "import os, sys, numpy, packedbag\n"
        "table = packedbag.load(sys.argv[1])\n"
        "indices = numpy.arange(600).reshape(30, 20)\n"
        "expected = table.bag(indices)\n"
        "workers = []\n"
        "for _ in range(3):\n"
        "    worker = os.fork()\n"
        "    if not worker:\n"
        "        os._exit(0 if numpy.array_equal(table.bag(indices), expected) else 1)\n"
        "    workers.append(worker)\n"
        "assert all(os.waitpid(worker, 0)[1] == 0 for worker in workers)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)


def test_a_model_is_saved_with_the_names_of_its_state_dict(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {
            "users": PackedEmbedding(10, 33),
            "deep": torch.nn.Sequential(PackedEmbeddingBag(20, 64), torch.nn.Linear(4, 2)),
        }
    )
    packedbag.save(model, tmp_path / "m.safetensors")
    opened = packedbag.load(tmp_path / "m.safetensors")
    assert isinstance(opened, LazyTables)
    assert list(opened) == ["deep.0", "users"]
    assert {f"{name}.weight" for name in opened} <= set(model.state_dict())
    assert repr(opened) == "LazyTables('deep.0': 20 x 64, 'users': 10 x 33)"
    np.testing.assert_array_equal(opened["users"].words, model["users"].to_table().words)
    one = packedbag.load(tmp_path / "m.safetensors", "deep.0", verify=True)
    np.testing.assert_array_equal(one.words, model["deep"][0].to_table().words)
    with pytest.raises(ArgumentError, match=r"name is 'items'; it must be one of 'deep\.0', 'users', the tables of"):
        packedbag.load(tmp_path / "m.safetensors", "items")


@pytest.mark.parametrize("form", [each for each in FORMATS if not each.several], ids=lambda each: each.name)
def test_a_format_with_room_for_one_table_refuses_two(tmp_path: Path, form: Format) -> None:
    skip_unless_installed(form)
    with pytest.raises(ArgumentError, match=r"source is 2 tables; it must be one, for .*safetensors"):
        packedbag.save({"a": table(), "b": table()}, tmp_path / "t", format=form.name)
    assert not list(tmp_path.iterdir())


@every_format
def test_the_name_of_a_table_comes_back(tmp_path: Path, form: Format) -> None:
    path = path_of(tmp_path, form)
    packedbag.save({"user.history": table()}, path)
    assert list(describe(path)) == ["user.history"]
    assert_equal(packedbag.load(path, "user.history"), table())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "source is a int; it must be a PackedTable"),
        ({}, "source is a dict that holds no packed table"),
        ({"a": 5}, "source is a mapping with 'a': int; it must be names and PackedTables"),
        ({5: table()}, "source is a mapping with 5: PackedTable"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "source is a Sequential that holds no packed table"),
    ],
)
def test_what_holds_no_packed_table_is_refused(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        packedbag.save(source, tmp_path / "t.pbag")
    assert not list(tmp_path.iterdir())


def test_names_of_files_and_formats_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path is .*t\.xyz'; it must be a name that ends in \.safetensors, \.pbag"):
        packedbag.save(table(), tmp_path / "t.xyz")
    with pytest.raises(ArgumentError, match="format is 'xyz'; it must be one of 'safetensors', 'pbag'"):
        packedbag.save(table(), tmp_path / "t", format="xyz")
    (tmp_path / "t.xyz").touch()
    with pytest.raises(
        DataError, match=r"is not read, by the end of its name, '\.xyz'; packed files end in \.safetensors"
    ):
        packedbag.load(tmp_path / "t.xyz")
    packedbag.save(table(), tmp_path / "t.xyz", format="pbag")
    assert_equal(packedbag.load(tmp_path / "t.xyz", format="pbag"), table())


def test_suffixes_name_one_format_each() -> None:
    suffixes = [suffix for each in FORMATS for suffix in each.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert len({each.name for each in FORMATS}) == len(FORMATS)
    assert find("A.SafeTensors").name == "safetensors"


@every_format
def test_metadata_that_are_no_json_are_refused_and_nothing_is_written(tmp_path: Path, form: Format) -> None:
    with pytest.raises(ArgumentError, match="metadata is"):
        packedbag.save(table(mode="sum", thing=object()), path_of(tmp_path, form))
    assert not list(tmp_path.iterdir())


@every_format
@every_scale
@pytest.mark.parametrize("failing", range(3))
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, form: Format, scale: str | None, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(tmp_path, form)
    packedbag.save(table(scale=scale), path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    synced = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == failing + 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    try:
        packedbag.save(table(scale=scale, seed=2), path)
    except OSError:
        pass
    else:
        pytest.skip("it asks the disk less often")
    if failing and form.name != "npy":
        pytest.skip("this was the folder: the file is there")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def mismatched(path: Path) -> bool:
    """Say whether the files of an .npy table do not belong together, and are refused for that."""
    try:
        describe(path)
    except DataError as error:
        return "does not belong to its sidecar" in str(error)
    return False


@every_format
def test_a_process_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path, form: Format) -> None:
    path = path_of(tmp_path, form)
    packedbag.save(table(300_000, 256, "row"), path)
    script = (
        "import sys, numpy, packedbag\n"
        "from tests.io.tables import table\n"
        "new = table(300_000, 256, 'row', seed=2)\n"
        "print('ready', flush=True)\n"
        "while True: packedbag.save(new, sys.argv[1])\n"
    )
    versions = [table(300_000, 256, "row", seed=seed) for seed in (1, 2)]
    for number in range(6):
        process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            time.sleep(0.005 * 2**number)
            process.kill()
            process.wait()
        if form.name == "npy" and mismatched(path):  # killed between two renames of its three files
            continue
        found = packedbag.load(path, verify=True)
        assert any(np.array_equal(found.words, each.words) for each in versions)


@every_format
def test_opening_needs_neither_torch_nor_memory(tmp_path: Path, form: Format) -> None:
    path = path_of(tmp_path, form)
    rows = 2_000_000
    packedbag.save(PackedTable(np.full((rows, 4), 7, np.uint32), 128), path)  # 32 MB
    script = (
        "import sys, numpy, packedbag\n"
        "from packedbag.io import tables\n"
        "from packedbag.report import memory\n"
        "table = packedbag.load(sys.argv[2]); table.bag(numpy.array([[0, 1]])); del table\n"
        "memory.reset_peak()\n"
        "before = memory.resident_bytes()\n"
        "table = packedbag.load(sys.argv[1])\n"
        "assert table.bag(numpy.array([[0, 1_999_999]])).tolist()[0][:4] == [2, 2, 2, -2]\n"
        "assert 'torch' not in sys.modules\n"
        "print(memory.peak_bytes() - before)\n"
    )
    small = tmp_path / f"small{form.suffixes[0]}"
    packedbag.save(table(), small)
    done = subprocess.run([sys.executable, "-c", script, path, small], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if form.name != "parquet":
        assert int(done.stdout) < 8 << 20
