"""`packedbag.recsys.datasets.recbole_wheel`."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from packedbag.core.errors import DataError
from packedbag.recsys.datasets import recbole_wheel

CONTENT = b"the pinned file" * 100


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a small file pinned in place of the wheel."""
    monkeypatch.setenv(recbole_wheel.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(recbole_wheel, "SIZE", len(CONTENT))
    monkeypatch.setattr(recbole_wheel, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "cache"


class Pip:
    """Stands for pip: writes ``content`` where it is told to, or fails."""

    def __init__(self, content=CONTENT, code=0, stderr=""):
        self.content, self.code, self.stderr = content, code, stderr
        self.commands = []

    def __call__(self, command, **kwargs):
        self.commands.append(command)
        if self.content is not None:
            (Path(command[command.index("--dest") + 1]) / recbole_wheel.FILE).write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def test_the_wheel_is_downloaded_once_and_without_dependencies(cache):
    pip = Pip()
    path = recbole_wheel.fetch(pip)
    assert path == cache / recbole_wheel.FILE
    assert path.read_bytes() == CONTENT
    assert recbole_wheel.fetch(pip) == path
    assert len(pip.commands) == 1
    assert pip.commands[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert pip.commands[0][-1] == "recbole==1.2.1"


def test_a_damaged_cache_is_fetched_again(cache):
    cache.mkdir()
    (cache / recbole_wheel.FILE).write_bytes(CONTENT[:-1] + b"?")
    assert recbole_wheel.fetch(Pip()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT + b"more", r"the file has 1,504 bytes; the pinned one has 1,500"),
        (CONTENT[:-1] + b"?", "the file's sha256 is [0-9a-f]{64}; the pinned one's is [0-9a-f]{64}"),
        (None, "pip brought no such file"),
    ],
)
def test_another_file_than_the_pinned_one_is_refused_and_not_kept(cache, content, message):
    with pytest.raises(DataError, match=message + r".*pip download --no-deps recbole==1\.2\.1, and pass --data"):
        recbole_wheel.fetch(Pip(content))
    assert not (cache / recbole_wheel.FILE).exists()


def test_offline_the_error_says_what_pip_said_and_what_to_do(cache):
    pip = Pip(None, code=1, stderr="WARNING: Retrying\nERROR: No matching distribution found for recbole==1.2.1\n")
    with pytest.raises(DataError, match=r"could not download it \(ERROR: No matching.*Check the network"):
        recbole_wheel.fetch(pip)


def test_a_download_that_hangs_ends(cache):
    def hangs(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    with pytest.raises(DataError, match="pip did not download it in 300 s"):
        recbole_wheel.fetch(hangs)


def test_without_pip_the_error_says_so(cache, monkeypatch):
    monkeypatch.setattr(recbole_wheel.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="this Python has no pip to download it with"):
        recbole_wheel.fetch(Pip())


def test_a_cache_that_cannot_be_written_is_named(cache):
    cache.write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be written: .* Set PACKEDBAG_CACHE to another folder\."):
        recbole_wheel.fetch(Pip())


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv(recbole_wheel.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert recbole_wheel.cache_folder() == tmp_path / "xdg" / "packedbag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recbole_wheel.cache_folder() == tmp_path / ".cache" / "packedbag"
