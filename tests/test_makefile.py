"""`make` sets up .venv once, keeps a torch that is there, installs a pinned one first where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = (
    *("demo", "test", "lint", "types", "bench", "bench-report", "bench-billion", "docs"),
    *("sanitize", "sanitize-cuda", "mutants", "gpu", "wheel", "clean"),
)

#: Stands for a Python: it logs how it is called, has a torch if the file `torch` beside the checkout names one,
#: and makes environments whose Python is itself.
PYTHON = """#!/usr/bin/env bash
state="@STATE@"
case "$*" in
    --version) echo "Python $(cat "$state/version")" ;;
    -c*) [[ "$(cat "$state/version")" != 3.9* ]] ;;
    -) [[ -s "$state/torch" ]] && cat "$state/torch" ;;
    "-m pip --version") echo pip ;;
    "-m venv"*)
        echo "$*" >>"$state/log"
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python ;;
    *)
        echo "$*" >>"$state/log"
        if [[ "$*" == *"constraints.txt torch" ]]; then echo 2.13.0 >"$state/torch"; fi ;;
esac
"""


class Checkout:
    """A folder with the project's Makefile and set-up, and a Python that only pretends."""

    def __init__(self, folder: Path, *, version: str = "3.12.1", torch: str | None = None) -> None:
        self.folder = folder / "checkout"
        self.state = folder / "state"
        for path in (self.state, self.folder / ".ci", self.folder / "cpu"):
            path.mkdir(parents=True)
        for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/venv"):
            shutil.copy2(ROOT / name, self.folder / name)
        (self.folder / "cpu" / "kernel.cpp").write_text("")
        (self.state / "version").write_text(version)
        (self.state / "log").write_text("")
        (self.state / "torch").write_text(torch or "")
        self.python = folder / "python"
        self.python.write_text(PYTHON.replace("@STATE@", str(self.state)))
        self.python.chmod(0o755)

    def set_up(self) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / ".ci" / "venv"), str(self.python)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def log(self) -> list[str]:
        return (self.state / "log").read_text().splitlines()

    def make(self, *arguments: str) -> str:
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments, f"PYTHON={self.python}"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@needs_bash
def test_torch_is_installed_first_and_pinned_where_there_is_none(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.set_up()
    assert done.returncode == 0, done.stderr
    assert checkout.log() == [
        "-m venv --clear .venv",
        "-m pip install --quiet -c constraints.txt torch",
        "-m pip install --quiet -c .venv/constraints.txt -e .[dev]",
    ]


@needs_bash
def test_a_torch_that_python_has_is_kept_and_pip_may_not_replace_it(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, torch="2.8.0+cu128")
    done = checkout.set_up()
    assert done.returncode == 0, done.stderr
    assert "keeping torch 2.8.0+cu128" in done.stdout
    assert checkout.log() == [
        "-m venv --clear --system-site-packages .venv",
        "-m pip install --quiet -c .venv/constraints.txt -e .[dev]",
    ]
    constraints = (checkout.folder / ".venv" / "constraints.txt").read_text()
    assert re.findall(r"^torch==.*$", constraints, re.MULTILINE) == ["torch==2.8.0+cu128"]
    assert re.search(r"^ruff==", constraints, re.MULTILINE)


@needs_bash
def test_an_environment_that_is_there_is_used_again(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    checkout.set_up()
    checkout.set_up()
    assert sum("-m venv" in line for line in checkout.log()) == 1
    assert sum(line.endswith("constraints.txt torch") for line in checkout.log()) == 1


@needs_bash
def test_a_python_that_is_too_old_is_refused_with_what_to_run(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, version="3.9.18")
    done = checkout.set_up()
    assert done.returncode == 2
    assert done.stderr == (
        f"packedbag needs Python 3.10 or newer; {checkout.python} is Python 3.9.18. Run: make PYTHON=python3.12 ...\n"
    )
    assert checkout.log() == []


def test_the_pinned_torch_is_one_that_the_package_accepts() -> None:
    pins = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert tuple(map(int, pins["torch"].split("."))) >= (2, 6)


@needs_make
@needs_bash
def test_a_second_make_sets_nothing_up_and_a_changed_source_does(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    assert ".ci/venv" in checkout.make("-n", "test")
    checkout.make(".venv/.ready")
    assert ".ci/venv" not in checkout.make("-n", "test")
    later = (checkout.folder / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(checkout.folder / "cpu" / "kernel.cpp", (later, later))
    assert ".ci/venv" in checkout.make("-n", "test")


@needs_make
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_short(verb: str, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    (checkout.folder / ".venv").mkdir()
    (checkout.folder / ".venv" / ".ready").touch()
    commands = checkout.make("-n", verb).splitlines()
    assert 1 <= len(commands) <= 2


@needs_make
def test_clean_keeps_the_environment_and_the_runs(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    for name in ("build", "dist", ".venv", "runs", "packedbag/__pycache__", "tests", "benchmarks", "docs", "examples"):
        (checkout.folder / name).mkdir(parents=True)
    checkout.make("clean")
    left = {path.name for path in checkout.folder.iterdir()}
    assert {".venv", "runs"} <= left
    assert not {"build", "dist"} & left
    assert not (checkout.folder / "packedbag" / "__pycache__").exists()
