"""`packedbag.io.atomic`."""

import errno
import os
import stat
from pathlib import Path

import pytest

from packedbag.io.atomic import remove_leftovers, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(target) as file:
        file.writelines([b"half", "no bytes"])
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_an_interrupt_as_soon_as_there_is_a_file_leaves_none(tmp_path, monkeypatch):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    create = Path.open

    def interrupted(path, *arguments):
        create(path, *arguments).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(target):
        pass
    assert names(tmp_path) == ["a"]


def test_a_full_disk_at_fsync_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), replacing(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_data_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    target = tmp_path / "a"
    seen = []
    real = os.fsync

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, target.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(target) as file:
        file.write(b"x")
    assert seen == [("file", False), ("folder", True)]


def test_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    for name in ("a", ".a.x1.tmp", ".b.x1.tmp", "a.tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "a")
    assert names(tmp_path) == [".b.x1.tmp", "a", "a.tmp"]
