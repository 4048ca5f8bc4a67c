"""Rules that hold for every file of the tree: length, no machine's paths, no registry hosts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".cpp", ".cc", ".h", ".hpp", ".cu", ".cuh")
MOST_LINES = 400
#: Home folders, mount points of one machine, and hosts that only one installation may reach.
MACHINE_PATHS = re.compile(r"(?<![\w.$}>~-])/(?:home|root|Users|work|opt|mnt|scratch)/[\w.]")
REGISTRY_HOSTS = re.compile(r"(?:index-url|find-links|https?://(?:\w+\.)*(?:pypi|pythonhosted|download\.pytorch)\.org)")


def tracked_files() -> list[Path]:
    """Return the files under version control, or skip where this is not a checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of tracked files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    """Return every tracked text file with its content; this file plants what it searches for."""
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content and path != Path(__file__):
            found.append((path.relative_to(ROOT), content.decode()))
    return found


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_source_file_has_400_lines() -> None:
    long = {
        str(path): count
        for path, text in texts()
        if path.suffix in SOURCES and (count := len(text.splitlines())) >= MOST_LINES
    }
    assert long == {}


def test_no_file_names_a_path_of_one_machine() -> None:
    assert lines_matching(MACHINE_PATHS) == []


def test_no_file_names_a_registry_host() -> None:
    assert lines_matching(REGISTRY_HOSTS) == []


@pytest.mark.parametrize("planted", ["data = '/home/anna/tables'", "-I /opt/cuda/include", "see /root/.cache"])
def test_a_planted_machine_path_is_found(planted: str) -> None:
    assert MACHINE_PATHS.search(planted)


@pytest.mark.parametrize("fine", ["../shared/work", "https://example.org/home/page", "$HOME/opt/x", "/usr/include"])
def test_a_path_that_every_machine_has_is_not_taken_for_one(fine: str) -> None:
    assert not MACHINE_PATHS.search(fine)


@pytest.mark.parametrize("planted", ["pip install --index-url x", "https://files.pythonhosted.org/packages/a"])
def test_a_planted_registry_host_is_found(planted: str) -> None:
    assert REGISTRY_HOSTS.search(planted)


def test_no_module_is_named_after_nothing() -> None:
    nameless = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
    assert [str(path) for path in tracked_files() if path.name in nameless] == []
