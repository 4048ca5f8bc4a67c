"""`benchmarks/choices.py` measures every choice, and its page shows the numbers in the tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "benchmarks" / "choices.json"

pytest.importorskip("torch")


def run(*arguments: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "choices.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_choice_of_the_page_is_measured(tmp_path: Path) -> None:
    written = tmp_path / "choices.json"
    run("--rows", "2000", "--seconds", "0", "--json", str(written))
    found = json.loads(written.read_text())["choices"]
    shown = json.loads(NUMBERS.read_text())["choices"]
    names = [choice["name"].replace("20,000 rows", "10,000,000 rows") for choice in found]
    assert names == [choice["name"] for choice in shown]
    assert all(choice["usual_us"] > 0 and choice["ratio"] > 0 for choice in found)


def test_the_page_shows_the_numbers_in_the_tree(tmp_path: Path) -> None:
    run("--from", str(NUMBERS), "--page", str(tmp_path / "choices.md"))
    assert (tmp_path / "choices.md").read_text() == (ROOT / "docs" / "benchmarks" / "choices.md").read_text()
