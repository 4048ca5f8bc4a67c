"""The benchmarks run, check what they time, and write what they found."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import figures, forward, page, tables, training
from benchmarks.goals import BATCHES, GOALS, MAIN, ONE_BAG
from benchmarks.pages import on_huge_pages, on_small_pages, share_on_huge_pages
from benchmarks.peers import fbgemm, registry
from benchmarks.peers.packed import SUM
from benchmarks.peers.torch_float import FP32
from benchmarks.readings import between_threads, ratio, seconds
from benchmarks.shapes import FORWARD, Shape, index_sets
from benchmarks.table import Expected, Table
from packedbag.backends import missing

ROOT = Path(__file__).parents[1]
TINY = Shape(rows=300, dim=64, bags=12, length=5)
OPTIONS = forward.Options(threads=(1,), seconds=0.0, bytes=8e9, sets=3)
# torch and FBGEMM warn as they load; what they say is not about packedbag.
pytestmark = pytest.mark.filterwarnings("ignore")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("contender", registry.CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("dim", [64, 128, 96])
def test_a_contender_gives_the_values_of_the_words(contender: Any, dim: int) -> None:
    if contender.missing():
        pytest.skip(contender.missing())
    shape = replace(TINY, dim=dim)
    table = Table(shape)
    batch = forward.batches(shape, 1)[0]
    expected = Expected(table, batch.indices.numpy(), batch.weights.numpy())
    with torch.set_grad_enabled(contender.grad):
        forward.check(contender, contender.build(table), shape, batch, expected)


@pytest.mark.parametrize("gives", ["sum", "majority", "weighted", "xor"])
def test_a_contender_with_one_wrong_value_is_not_timed(gives: str) -> None:
    contender = next(one for one in registry.CONTENDERS if one.gives == gives and not one.missing())
    table = Table(TINY)
    batch = forward.batches(TINY, 1)[0]
    expected = Expected(table, batch.indices.numpy(), batch.weights.numpy())
    call = contender.build(table)
    read = call.read

    def spoil(result: Any) -> Any:
        values = np.array(read(result))
        values[3, 0] = ~values[3, 0] if values.dtype == bool else values[3, 0] + 1
        return values

    call.read = spoil
    with pytest.raises(forward.WrongValuesError, match=f"{contender.name} on 300x64x12x5 gives wrong values"):
        forward.check(contender, call, TINY, batch, expected)


def test_a_shape_is_read_from_its_name() -> None:
    assert Shape.parse("1e6x128x2048x20-zipf") == Shape(10**6, 128, 2048, 20, zipf=True)
    assert all(Shape.parse(shape.name) == shape for shape in (*FORWARD, TINY))


@pytest.mark.parametrize("text", ["1e6x128x2048", "1e6x128x0x20", "1e6x128x2048x20-pareto", "axbxcxd", "1.5x2x3x4"])
def test_another_name_of_a_shape_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="rows x dim x bags x length"):
        Shape.parse(text)


def test_zipf_indices_follow_the_law_and_are_not_sorted_by_frequency() -> None:
    drawn = np.concatenate([x.ravel() for x in index_sets(Shape(1000, 1, 5000, 20, zipf=True), 4)])
    assert drawn.min() >= 0
    assert drawn.max() < 1000
    counts = np.bincount(drawn, minlength=1000)
    ranks = np.arange(1, 1001) ** -1.05
    expected = drawn.size * ranks / ranks.sum()
    np.testing.assert_allclose(np.sort(counts)[::-1][:10], expected[:10], rtol=0.05)
    assert counts.argmax() != 0


def test_groups_stay_within_memory_and_each_has_what_ratios_are_to() -> None:
    shape = Shape.parse("1e7x128x2048x20")
    groups = registry.groups(registry.CONTENDERS, shape, 8e9)
    assert len(groups) > 1
    names = [contender.name for group in groups for contender in group]
    assert set(names) == {contender.name for contender in registry.CONTENDERS}
    for group in groups:
        assert set(registry.ALWAYS) <= {contender.name for contender in group}
        formats = {contender.format: contender.bytes_a_weight for contender in group}
        assert sum(formats.values()) * shape.rows * shape.dim <= 8e9


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what lies on huge pages")
def test_small_pages_stay_small_and_huge_ones_are_asked_for() -> None:
    small = on_small_pages((2048, 2048), torch.int32).fill_(1)
    assert share_on_huge_pages(small) == 0
    huge = on_huge_pages((2048, 2048), torch.int32).fill_(1)
    assert huge.data_ptr() % (2 << 20) == 0
    share = share_on_huge_pages(huge)
    assert share is not None
    assert 0 <= share <= 1


def invented(name: str, threads: int, values: dict[str, list[float]], waited: dict[str, list[int]]) -> dict[str, Any]:
    one = {"threads": threads, "seconds": values, "own": {}, "waited": {key: [] for key in values} | waited, "cold": {}}
    return {"shape": name, "bags": 1000, "families": dict.fromkeys(values, "float"), "runs": [one]}


def test_a_ratio_is_the_median_of_rounds_in_which_nobody_waited() -> None:
    values = {"a": [2.0, 2.0, 9.0, 2.0, 2.0], "b": [1.0, 1.0, 1.0, 0.5, 0.01]}
    result = invented("x", 1, values, {"a": [2], "b": [4]})
    found = ratio(result, 1, "a", "b")
    assert found is not None
    assert (found.value, found.busy) == (2.0, False)
    taken = seconds(result, 1, "b")
    assert taken is not None
    assert taken.value == 1.0


def test_a_reading_says_when_all_rounds_waited() -> None:
    result = invented("x", 1, {"a": [2.0, 2.0, 2.0], "b": [1.0, 1.0, 1.0]}, {"a": [0, 1, 2]})
    found = ratio(result, 1, "a", "b")
    assert found is not None
    assert found.busy
    assert found.value == 2.0
    assert "busy" in str(found)


def test_a_busy_machine_is_judged_by_the_threads_own_time() -> None:
    result = invented("x", 1, {"a": [2.0, 2.0, 2.0], "b": [1.0, 1.0, 1.0]}, {"a": [0, 1, 2]})
    result["runs"][0]["own"] = {"a": [1.5, 1.5, 1.5], "b": [0.5, 0.5, 0.5]}
    found = ratio(result, 1, "a", "b")
    assert found is not None
    assert (found.value, found.busy) == (3.0, True)


def test_two_threads_are_compared_round_by_round() -> None:
    result = invented("x", 1, {"a": [2.0, 4.0, 6.0]}, {})
    result["runs"] += invented("x", 2, {"a": [1.0, 2.0, 6.0]}, {})["runs"]
    found = between_threads(result, "a")
    assert found is not None
    assert found.value == 2.0


def invented_results() -> dict[str, Any]:
    """Results in which every contender takes a second, except packedbag, which takes a thousandth."""

    def taken(name: str) -> float:
        return 0.001 if name.startswith("packedbag") else 1.0

    forward_part, step_part = [], []
    for shape in (*BATCHES, ONE_BAG):
        chosen = [one for one in registry.CONTENDERS if one.fits(Shape.parse(shape))]
        values = {one.name: [taken(one.name)] * 3 for one in chosen}
        values |= {f"kernel {isa} {mode}": [1.0] * 3 for isa in ("avx512", "avx2") for mode in ("sum", "majority")}
        result = invented(shape, 1, values, {})
        result["runs"] += invented(shape, 2, {name: [x / 2 for x in v] for name, v in values.items()}, {})["runs"]
        families = {one.name: one.family for one in chosen}
        forward_part.append({**result, "families": families, "huge_pages": dict.fromkeys(values), "skipped": {}})
    names = (training.name_of(8), training.TORCH, training.FBGEMM)
    phases = {"forward": 1e-3, "backward": 1e-3, "update": 1e-3}
    step = invented(MAIN, 1, {name: [taken(name)] * 3 for name in names}, {})
    step_part.append({**step, "phases": phases, "skipped": {"FBGEMM something": "it is not installed"}})
    memory = {"shape": MAIN, "table_bytes": 1, "state_bytes": 1, "peak_bytes": 2, "above_bytes": 17_000_000}
    facts = {"processor": "P", "caches": ["L2 1M"], "memory_bytes": 2**30, "system": "S", "huge_pages": "madvise"}
    facts |= dict.fromkeys(("python", "torch", "numpy", "fbgemm-gpu-cpu", "packedbag", "backend"), "1")
    facts |= {"load_before": 0.0, "isas": ["avx512"]}
    return {"machine": facts, "forward": forward_part, "step": step_part, "memory": memory}


def test_the_page_states_every_goal_and_what_was_measured() -> None:
    text = page.render(invented_results())
    for goal in GOALS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {goal.what} |"))
        assert goal.target() in row
        assert goal.command in row
        assert "not measured" not in row
    assert "1000 (1000 to 1000)" in text
    assert "| short: " in next(line for line in text.splitlines() if line.startswith("| peak memory"))
    assert "0 of " in text
    assert "- FBGEMM something: it is not installed" in text


def test_goals_without_numbers_are_not_called_met() -> None:
    _, rows = tables.goals_grid({"machine": {}, "forward": [], "step": []}, commands=False)
    assert {row[3] for row in rows} == {"not measured"}


def test_goals_are_those_that_were_set() -> None:
    bounds = sorted(goal.bound for goal in GOALS)
    assert bounds == sorted(
        [14, 12, 20, 3.5, 3.5, 3.5, 3.2, 3.2, 2.5, 50, 40, 0.9, 0.75, 8, 0.6, 0.6, 1.7, 1, 1.5, 8, 2, 16]
    )


def test_figures_are_drawn_from_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = invented_results()
    for name in figures.FIGURES:
        figures.draw(name, results[name], tmp_path / f"{name}.svg")
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert all(line in drawn for line in figures.two_lines(results[name][0]["shape"]).splitlines())


def test_the_page_in_the_tree_is_that_of_the_numbers_in_the_tree() -> None:
    numbers = json.loads((ROOT / "docs" / "benchmarks" / "cpu.json").read_text())
    assert (ROOT / "docs" / "benchmarks" / "cpu.md").read_text() == page.render(numbers)


def test_every_step_sums_the_same_gradients() -> None:
    found = training.measure(replace(TINY, zipf=True), OPTIONS, lambda text: None)
    (one,) = found["runs"]
    names = {training.TORCH, *map(training.name_of, training.BITS)}
    assert set(one["seconds"]) == names | (set() if fbgemm.missing() else {training.FBGEMM})
    assert all(value > 0 for value in found["phases"].values())


def test_a_step_that_sums_another_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = training.PackedStep.squares
    monkeypatch.setattr(training.PackedStep, "squares", lambda self, shape: seen(self, shape) * 1.01)
    with pytest.raises(training.WrongStepError, match="summed other gradients than torch"):
        training.measure(TINY, OPTIONS, lambda text: None)


def test_the_command_prints_ratios_and_writes_numbers(tmp_path: Path) -> None:
    written = tmp_path / "cpu.json"
    options = ("--sets", "3", "--seconds", "0", "--threads", "1", "--peers", "bf16", "--shapes", "300x64x12x5")
    done = run("-m", "benchmarks", "--parts", "forward", *options, "--json", str(written))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(written.read_text())["forward"]
    assert set(found["runs"][0]["seconds"]) == {FP32, "F.embedding_bag bf16", SUM}
    assert all(name in done.stdout for name in found["runs"][0]["seconds"])
    again = run("-m", "benchmarks", "--from", str(written), "--page", str(tmp_path / "cpu.md"))
    assert again.returncode == 0, again.stderr
    assert "# CPU speed, measured" in (tmp_path / "cpu.md").read_text()


def test_the_figure_is_drawn_from_the_numbers_in_the_tree(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "memory.svg"
    numbers = ROOT / "docs" / "benchmarks" / "memory.json"
    done = run("benchmarks/memory.py", "--from", str(numbers), "--figure", str(figure))
    assert done.returncode == 0, done.stderr
    kinds = json.loads(numbers.read_text())["kinds"]
    for drawn in (figure, ROOT / "docs" / "_static" / "memory.svg"):
        text = drawn.read_text()
        assert all(kind["label"] in text for kind in kinds.values())


def test_memory_is_measured_for_every_kind(tmp_path: Path) -> None:
    written = tmp_path / "memory.json"
    done = run("benchmarks/memory.py", "--rows", "2000", "--dim", "64", "--batch", "64", "--json", str(written))
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
        "benchmarks/latency.py",
        "--rows",
        "300",
        "--dim",
        "40",
        "--bags",
        "2",
        "--length",
        "3",
        "--sets",
        "3",
        "--rounds",
        "2",
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" us", 1) for line in done.stdout.splitlines()]
    assert all(float(name.split()[-1]) > 0 for name, _ in lines)
    for what in ("F.embedding_bag, no gradients", "packed module, gradients on", "layer: is_watched"):
        assert any(name.startswith(what) for name, _ in lines)
