"""`packedbag.recsys.checkpoint`."""

import errno
import os
from pathlib import Path

import pytest
import torch

from packedbag.core.errors import CheckpointError
from packedbag.recsys import checkpoint

STATE = {"a": torch.arange(5), "b": {"c": 1.5, "d": [1, "x"]}, "bits": torch.tensor([1, 2], dtype=torch.uint32)}


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    found = checkpoint.load(tmp_path / "c.pt")
    assert found["b"] == STATE["b"]
    assert torch.equal(found["a"], STATE["a"])
    assert found["bits"].dtype == torch.uint32
    assert found["bits"].tolist() == [1, 2]


class _FullDisk:
    """A file on a disk that is full after ``room`` bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path, monkeypatch, room):
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda *args, **named: _FullDisk(real(*args, **named), room))
    with pytest.raises(
        CheckpointError,
        match=r"c\.pt: the checkpoint could not be written: No space left on device\. The checkpoint before it is "
        r"whole\. Make room or pass another --output, then continue with --resume\.",
    ):
        checkpoint.save(path, {"a": torch.arange(5000)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_first_checkpoint_on_a_full_disk_promises_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\. Make room"):
        checkpoint.save(tmp_path / "c.pt", STATE)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_the_disks_is_not_hidden(tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        checkpoint.save(tmp_path / "c.pt", {"a": Unpicklable()})


@pytest.mark.parametrize("size", [0, 10, 300, -20])
def test_a_damaged_checkpoint_is_refused(tmp_path, size):
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"c\.pt: the checkpoint is damaged \(.*\)\. Start without --resume\."):
        checkpoint.load(path)


def test_a_missing_checkpoint_and_one_of_another_version_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint\. Start without --resume, or pass its --output"):
        checkpoint.load(tmp_path / "c.pt")
    torch.save({"version": 99}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="the checkpoint has version 99, not 1"):
        checkpoint.load(tmp_path / "c.pt")


def test_loading_removes_what_a_killed_run_left(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    (tmp_path / ".c.pt.abc.tmp").write_bytes(b"half")
    checkpoint.load(tmp_path / "c.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    torch.save({"version": 1, "x": Evil()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [[1], {"kind": "packed"}])
def test_a_torch_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="the checkpoint has version None, not 1"):
        checkpoint.load(tmp_path / "c.pt")


def test_a_checkpoint_of_something_else_is_refused_naming_what_it_lacks(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    with pytest.raises(CheckpointError, match=r"the checkpoint is damaged \(without tables, dense\)"):
        checkpoint.load(tmp_path / "c.pt", ["tables", "dense"])
