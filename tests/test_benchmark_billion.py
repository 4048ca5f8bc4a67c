"""`make bench-billion` at a tiny size: every phase gives the right result, and what cannot work is refused."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
NUMBERS = ROOT / "docs" / "benchmarks" / "billion.json"
Usage = namedtuple("Usage", "total used free")

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

SETTINGS = {"rows": 2000, "dim": 40, "bits": 3, "adaptivity": "ema", "threads": 1}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "billion.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("billion")
    (folder / "files").mkdir()
    sizes = ["--rows", "2000", "--dim", "40", "--steps", "3", "--bags", "16", "--length", "5", "--seconds", "0.01"]
    done = run(*sizes, "--directory", str(folder / "files"), "--json", str(folder / "billion.json"))
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "billion.json").read_text())


@pytest.fixture
def billion(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("billion")


def test_a_resumed_run_has_the_bits_of_the_run_that_went_on(finished: tuple[Path, dict[str, Any]]) -> None:
    digests = [found["digest"] for found in finished[1]["phases"] if "digest" in found]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64


def test_the_mapped_table_serves_the_modules_values_without_torch(finished: tuple[Path, dict[str, Any]]) -> None:
    served = [found for found in finished[1]["phases"] if "same" in found]
    assert len(served) == 3
    assert all(found["same"] for found in served)
    assert served[-1]["without_torch"]


def test_every_phase_has_seconds_and_memory(finished: tuple[Path, dict[str, Any]]) -> None:
    phases = finished[1]["phases"]
    assert list(dict.fromkeys(found["process"] for found in phases)) == ["train", "resume", "serve"]
    for found in phases:
        assert found["seconds"] > 0
        assert found["anon_bytes"] > 1e6
        assert found["most_bytes"] is None or found["most_bytes"] > 0.9 * found["anon_bytes"]


def test_the_sizes_are_those_that_the_arrays_have(finished: tuple[Path, dict[str, Any]]) -> None:
    result = finished[1]
    assert (result["table_bytes"], result["state_bytes"]) == (2000 * 8, 2000 * 16 + 2000 * 4)
    measured = {
        name: found[name] for found in result["phases"] for name in ("table_bytes", "state_bytes") if name in found
    }
    assert measured == {"table_bytes": result["table_bytes"], "state_bytes": result["state_bytes"]}


def test_a_row_costs_something_on_either_kind_of_page(finished: tuple[Path, dict[str, Any]]) -> None:
    points = [(point["rows"], point["huge_pages"]) for point in finished[1]["curve"]]
    assert points == [(2000, True), (2000, False)]
    for point in finished[1]["curve"]:
        assert 0 < point["forward"]["least"] <= point["forward"]["median"]
        assert point["step"]["median"] > 0


def test_no_file_is_left(finished: tuple[Path, dict[str, Any]]) -> None:
    assert list((finished[0] / "files").iterdir()) == []


def test_a_limit_that_a_phase_exceeds_is_a_failure(finished: tuple[Path, dict[str, Any]]) -> None:
    numbers = str(finished[0] / "billion.json")
    assert run("--from", numbers, "--limit", "18").returncode == 0
    done = run("--from", numbers, "--limit", "0.001")
    assert done.returncode == 1
    assert "that is more than --limit 0.001 GB" in done.stderr


def test_too_little_memory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = run("--rows", str(10**13), "--directory", str(tmp_path))
    assert done.returncode == 1
    assert f"--rows {10**13}: table, state and libraries take 160 TB of memory" in done.stderr
    assert "Pass fewer --rows or --bits" in done.stderr
    assert done.stdout == ""


def test_too_little_disk_is_refused_with_what_is_needed(
    billion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billion.memory, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(billion.shutil, "disk_usage", lambda path: Usage(10**12, 0, 20 * 10**9))
    settings = {**SETTINGS, "rows": 10**9, "dim": 32}
    with pytest.raises(SystemExit, match=r"exported table take 20\.1 GB, and 20 GB are free\. Pass a --directory"):
        billion.check_room(settings, tmp_path)
    billion.check_room({**settings, "rows": 9 * 10**8}, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"digest": "b"}, "has other bits than the run that went on"),
        ({"same": False}, "serves other values"),
        ({"without_torch": False}, "needed torch"),
    ],
)
def test_a_wrong_result_ends_the_run(
    billion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    found = {"phase": "x", "seconds": 1.0, "anon_bytes": 1, "file_bytes": 1, "most_bytes": 1, "same": True}
    right = {"train": {"digest": "a"}, "resume": {"digest": "a"}, "serve": {"without_torch": True}}

    def child(script: str, group: str, *arguments: str, threads: int) -> list[dict[str, Any]]:
        return [{**found, **right[group], **(changed if group == wrong else {})}]

    monkeypatch.setattr(billion, "child", child)
    wrong = "none"
    assert len(billion.life(SETTINGS, tmp_path)) == 3
    wrong = "resume" if "digest" in changed else "serve"
    with pytest.raises(SystemExit, match=message):
        billion.life(SETTINGS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_ends_the_run(billion: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"billion_phases\.py serve ended with status 1"):
        list(billion.child("billion_phases.py", "serve", str(tmp_path), json.dumps(SETTINGS), threads=1))


def test_the_page_and_the_figure_show_the_numbers_in_the_tree(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, figure = tmp_path / "billion.md", tmp_path / "billion.svg"
    done = run("--from", str(NUMBERS), "--page", str(page), "--figure", str(figure))
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "benchmarks" / "billion.md").read_text()
    for drawn in (figure, ROOT / "docs" / "_static" / "billion.svg"):
        assert "nanoseconds a looked-up row" in drawn.read_text()
