"""`convert`: checkpoints into packed files and back, without a change, without a half file, without the memory."""

import json
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from packedbag import PackedTable
from packedbag.adapters.bitorch_engine import convert
from packedbag.core.errors import DataError, PackedBagError
from packedbag.io import safetensors_tables
from packedbag.report.memory import reset_peak
from tests.adapters.saved_states import DIMS, ROWS, assert_same, foreign_state, load

MB = 1 << 20


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("small_file_pieces")
def test_there_and_back_every_tensor_has_its_name_and_its_bits(tmp_path, rows, dim):
    torch.manual_seed(dim)
    expected = foreign_state(rows, dim)
    torch.save(expected, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    convert(tmp_path / "new.safetensors", tmp_path / "back.pt")
    assert_same(load(tmp_path / "back.pt"), expected)
    assert_same(load(tmp_path / "back.pt", mmap=True), expected)
    with zipfile.ZipFile(tmp_path / "back.pt") as archive:
        assert archive.testzip() is None


def test_bits_of_linear_layers_and_of_other_names_stay_as_they_are(tmp_path):
    expected = foreign_state()
    expected["dense.qweight"] = torch.ones(4, 2, dtype=torch.uint8)
    expected["dense.scale_w"] = torch.tensor(0.5)
    expected["mask"] = torch.ones(3, 3, dtype=torch.bool)
    torch.save(expected, tmp_path / "old.pt")
    done = convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert [table.name for table in done.tables] == ["bag.", "lookup."]
    convert(tmp_path / "new.safetensors", tmp_path / "back.pt")
    assert_same(load(tmp_path / "back.pt"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_come_back_in_their_dtype(tmp_path, dtype):
    expected = {"qweight": torch.ones(50, 2, dtype=torch.uint8), "scale_w": torch.rand(50, 1).to(dtype)}
    torch.save(expected, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    convert(tmp_path / "new.safetensors", tmp_path / "back.pt")
    assert_same(load(tmp_path / "back.pt"), expected)
    scale = safetensors_tables.read(tmp_path / "new.safetensors").tables[""].load().scale
    np.testing.assert_array_equal(scale, expected["scale_w"].cpu().float().reshape(-1))


def test_the_endings_decide_and_options_that_do_not_go_with_them_are_refused(tmp_path):
    torch.save(foreign_state(), tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    for source, target, options, says in [
        ("old.pt", "new.txt", {}, r"target is .*new\.txt; it must be a file that ends in \.safetensors"),
        ("old.pt", "x.safetensors", {"form": "bool"}, "form is 'bool'; it must be left out"),
        ("new.safetensors", "x.pt", {"embedding_dim": 3}, "embedding_dim is 3; it must be left out"),
        ("new.safetensors", "x.pt", {"form": "char"}, "form is 'char'"),
        ("new.safetensors", "x.safetensors", {}, r"source is .*new\.safetensors; it must be a checkpoint"),
        ("old.pt", "x.pth", {}, r"source is .*old\.pt; it must be a packed \.safetensors file"),
        ("none.pt", "x.safetensors", {}, r"none\.pt: cannot be read"),
        ("none.safetensors", "x.pt", {}, r"none\.safetensors: cannot be read"),
    ]:
        with pytest.raises(PackedBagError, match=says):
            convert(tmp_path / source, tmp_path / target, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.safetensors", "old.pt"]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_damaged_source_leaves_the_old_target(tmp_path, ending):
    torch.save(foreign_state(2000, 64), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    source, target = tmp_path / f"a.{ending}", tmp_path / ("b.safetensors" if ending == "pt" else "b.pt")
    data = bytearray(source.read_bytes())
    data[-8000 if ending == "pt" else -100] ^= 1
    source.write_bytes(data)
    target.write_bytes(b"old")
    with pytest.raises(DataError, match=r"the checksum of the storage|have sha256"):
        convert(source, target)
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


def test_progress_counts_to_the_bytes_of_the_checkpoint(tmp_path):
    state = foreign_state(1000, 96)
    torch.save(state, tmp_path / "old.pt")
    total = sum(value.nbytes for value in state.values())
    for source, target in [("old.pt", "new.safetensors"), ("new.safetensors", "back.pt")]:
        calls = []
        convert(tmp_path / source, tmp_path / target, progress=lambda *call, to=calls: to.append(call))
        assert calls[-1] == (total, total)
        assert calls == sorted(calls)


KILLED = """
import os, signal, sys
from packedbag.adapters.bitorch_engine.conversion import convert
def stop(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], progress=stop)
"""


def test_a_killed_conversion_leaves_the_old_file(tmp_path):
    table = PackedTable(np.zeros((200_000, 4), np.uint32), 128)
    safetensors_tables.save(tmp_path / "a.safetensors", {"x.": table})
    (tmp_path / "b.pt").write_bytes(b"old")
    arguments = [sys.executable, "-c", KILLED, tmp_path / "a.safetensors", tmp_path / "b.pt"]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "b.pt").read_bytes() == b"old"


FULL = """
import resource, sys
from packedbag.adapters.bitorch_engine.conversion import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    convert(sys.argv[1], sys.argv[2])
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("target", ["b.pt", "b.safetensors"])
def test_a_disk_that_takes_no_more_leaves_the_old_file_and_nothing_else(tmp_path, target):
    made = {"a.weight": torch.ones(50_000, 64, dtype=torch.bool), "b": torch.ones(3)}
    torch.save(made, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    (tmp_path / target).write_bytes(b"old")
    source = tmp_path / ("a.safetensors" if target == "b.pt" else "a.pt")
    arguments = [sys.executable, "-c", FULL, source, tmp_path / target]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("File too large\n", 0), done.stderr
    assert (tmp_path / target).read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


CHILD = """
import json, os, sys
import numpy
from packedbag.adapters.bitorch_engine.checkpoint import write_checkpoint
from packedbag.adapters.bitorch_engine.conversion import convert
from packedbag.report import memory
from packedbag.table import PackedTable

def measured(work):
    memory.reset_peak()
    before = memory.resident_bytes()
    work()
    return memory.peak_bytes() - before

def all_ways(folder, rows):
    words = numpy.random.default_rng(0).integers(0, 2**32, (rows, 8), numpy.uint32)
    table, dense = PackedTable(words, 256), {"dense": __import__("torch").zeros(rows, 8)}
    old, new, back = (os.path.join(folder, name) for name in ("old.pt", "new.safetensors", "back.pt"))
    peaks = {"write": measured(lambda: write_checkpoint({"a.weight": table, **dense}, old))}
    del table, words, dense
    peaks["pack"] = measured(lambda: convert(old, new))
    os.unlink(old)
    peaks["unpack"] = measured(lambda: convert(new, back))
    peaks["bytes"] = [os.path.getsize(new), os.path.getsize(back)]
    return peaks

all_ways(sys.argv[1], 100)  # libraries
print(json.dumps(all_ways(sys.argv[1], 2_000_000)))
"""


def test_a_table_of_half_a_gigabyte_of_bools_never_stands_in_memory(tmp_path, capsys):
    if not reset_peak():
        pytest.skip("no /proc/self/clear_refs")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300, env=environment)
    for path in tmp_path.iterdir():
        path.unlink()
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    packed, dense = 2_000_000 * 32, 2_000_000 * 32
    assert peaks["bytes"][0] == pytest.approx(packed + dense, rel=0.001)
    assert peaks["bytes"][1] == pytest.approx(8 * packed + dense, rel=0.001)
    assert peaks["write"] < 32 * MB, peaks
    assert peaks["pack"] < packed + 48 * MB, peaks
    assert peaks["unpack"] < packed + 48 * MB, peaks
    with capsys.disabled():
        print({name: f"{value / MB:.0f} MB" for name, value in peaks.items() if name != "bytes"})
