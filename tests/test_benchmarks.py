"""The benchmarks run, check what they time, and write what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from packedbag.backends import missing

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dim", ["64", "40"])
def test_the_forward_benchmark_compares_the_same_sums_in_one_run(dim: str, tmp_path: Path) -> None:
    written = tmp_path / "forward.json"
    sizes = ("--rows", "200", "--dim", dim, "--bags", "16", "--length", "5", "--rounds", "5", "--sets", "3")
    done = run("forward.py", *sizes, "--json", str(written))
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    assert (found["rows"], found["dim"], found["threads"]) == (200, int(dim), 1)
    assert found["results"]["F.embedding_bag, fp32"]["times_torch"] == 1.0
    assert all(line["million_bags_a_second"] > 0 for line in found["results"].values())
    assert "packedbag majority, packed" in found["results"]


def test_the_figure_is_drawn_from_the_numbers_in_the_tree(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "memory.svg"
    numbers = ROOT / "docs" / "benchmarks" / "memory.json"
    done = run("memory.py", "--from", str(numbers), "--figure", str(figure))
    assert done.returncode == 0, done.stderr
    kinds = json.loads(numbers.read_text())["kinds"]
    for drawn in (figure, ROOT / "docs" / "_static" / "memory.svg"):
        text = drawn.read_text()
        assert all(kind["label"] in text for kind in kinds.values())


def test_memory_is_measured_for_every_kind(tmp_path: Path) -> None:
    written = tmp_path / "memory.json"
    done = run("memory.py", "--rows", "2000", "--dim", "64", "--batch", "64", "--json", str(written))
    assert done.returncode == 0, done.stderr
    kinds = json.loads(written.read_text())["kinds"]
    tables = {name: kind["table_bytes"] for name, kind in kinds.items()}
    assert tables["fp32"] == 32 * tables["packed8"] == 32 * tables["packed2"]
    assert tables["char"] == 8 * tables["packed8"]
    assert all(kind["peak_bytes"] >= kind["table_bytes"] for kind in kinds.values())


def test_the_latency_benchmark_times_every_layer_and_the_peers() -> None:
    if missing("native_cpu"):
        pytest.skip("it takes the native backend apart")
    done = run(
        "latency.py", "--rows", "300", "--dim", "40", "--bags", "2", "--length", "3", "--sets", "3", "--rounds", "2"
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" us", 1) for line in done.stdout.splitlines()]
    assert all(float(name.split()[-1]) > 0 for name, _ in lines)
    for what in ("F.embedding_bag, no gradients", "packed module, gradients on", "layer: is_watched"):
        assert any(name.startswith(what) for name, _ in lines)
