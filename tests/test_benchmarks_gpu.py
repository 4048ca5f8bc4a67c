"""The GPU benchmark measures, checks and says what it should; here on a CPU, whose numbers mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import packedbag
from benchmarks.gpu import capacity, figures, forward, latency, page, reasons, step, tables, traffic, turns
from benchmarks.gpu.clock import HostClock, WallClock
from benchmarks.gpu.contender import Call, Contender
from benchmarks.gpu.expected import Expected, WrongValuesError, check
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.machine import slug
from benchmarks.gpu.peers import floats, packed, registry
from benchmarks.gpu.readings import difference, ratio, seconds
from benchmarks.gpu.shapes import FORWARD, MAIN, ONE_BAG, SMALL_STEP
from benchmarks.gpu.turns import CALLED, CAPTURED, Turn, take_turns
from benchmarks.shapes import Shape
from benchmarks.table import Table

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TINY = Shape(rows=300, dim=64, bags=12, length=5)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def quiet(text: str) -> None:
    """Say nothing."""


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_in_one_line() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("benchmarks.gpu measures a GPU, and ")
    assert done.stderr.count("\n") == 1


def test_every_part_runs_from_the_command_to_the_page(tmp_path: Path) -> None:
    numbers, text = tmp_path / "x.json", tmp_path / "x.md"
    shapes = ("--shapes", "300x64x12x5", "300x64x1x5", "--sets", "3", "--seconds", "0", "--rows", "1000")
    done = run("--device", "cpu", *shapes, "--json", str(numbers), "--page", str(text))
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(numbers.read_text())
    here = [one.name for one in registry.CONTENDERS if not one.missing(CPU)]
    assert [list(result[CALLED]) for result in found["forward"]] == [here]
    assert list(found["latency"][0][CALLED]) == [one.name for one in latency.CONTENDERS]
    assert list(found["step"][0][CALLED]) == list(step.contenders())
    assert found["capacity"]["rows"] == 1000
    assert found["capacity"]["compared_rows"] > 100
    assert found["errors"] == {}
    assert "This is not a measurement of a GPU" in text.read_text()
    assert "- gather ceiling: it is a CUDA kernel" in text.read_text()
    again = run("--from", str(numbers), "--page", str(tmp_path / "again.md"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.md").read_text() == text.read_text()


@pytest.mark.parametrize("target", [("--page", "docs/benchmarks/x.md"), ("--page-folder", "docs/benchmarks")])
def test_numbers_of_a_cpu_do_not_go_among_those_of_cards(target: tuple[str, str]) -> None:
    done = run("--device", "cpu", "--parts", "copy", *target)
    assert done.returncode == 2
    assert "only test the benchmark" in done.stderr
    assert not (ROOT / "docs" / "benchmarks" / "x.md").exists()


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("chosen", [registry.CONTENDERS, latency.CONTENDERS], ids=["forward", "latency"])
def test_every_contender_gives_the_values_of_the_words(dim: int, chosen: tuple[Contender, ...]) -> None:
    table = Table(replace(TINY, dim=dim))
    inputs = forward.batches(table.shape, 2, CPU, torch.int32)
    present = [one for one in chosen if not one.missing(CPU)]
    ready, failed = forward.prepared(present, table, inputs, quiet)
    assert failed == {}
    assert [turn.name for turn in ready] == [one.name for one in present]


def prepared_call(name: str) -> tuple[Contender, Call, torch.Tensor, Expected]:
    table = Table(TINY)
    (indices,) = forward.batches(TINY, 1, CPU, torch.int32)
    contender = next(one for one in registry.CONTENDERS if one.name == name)
    return contender, contender.build(table), indices, Expected(table.words, TINY.dim, indices, TINY.name)


@pytest.mark.parametrize("name", [packed.SUM, packed.MAJORITY, floats.BF16])
def test_one_wrong_value_is_seen(name: str) -> None:
    contender, call, indices, expected = prepared_call(name)
    read = call.read

    def spoil(result: torch.Tensor) -> torch.Tensor:
        values = read(result).clone()
        values[7, 3] = ~values[7, 3] if values.dtype == torch.bool else values[7, 3] + 2
        return values

    call.read = spoil
    with pytest.raises(WrongValuesError, match=r"gives wrong values: 1 of 768, first in bag 7, column 3: "):
        check(name, contender.gives, call, TINY, indices, expected)


def test_a_value_that_is_not_written_is_seen() -> None:
    contender, call, indices, expected = prepared_call(packed.SUM)
    right, held = call.function, torch.empty(12, 64)

    def lazy(given: torch.Tensor) -> torch.Tensor:
        held[:11] = right(given)[:11]  # the last bag stays as the memory was
        return held

    call.function = lazy
    held.copy_(right(indices))
    with pytest.raises(WrongValuesError, match=r"first in bag 11, column 0: nan"):
        check("lazy", contender.gives, call, TINY, indices, expected)


def test_the_judge_itself_is_held_to_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(TINY)
    (indices,) = forward.batches(TINY, 1, CPU, torch.int32)
    unpack = packedbag.unpack
    monkeypatch.setattr(packedbag, "unpack", lambda words, dim: ~unpack(words, dim))
    with pytest.raises(WrongValuesError, match="the judge on 300x64x12x5"):
        Expected(table.words, TINY.dim, indices, TINY.name)


def test_one_who_fails_is_left_out_and_the_others_go_on() -> None:
    def full(table: Table) -> Call:
        raise torch.cuda.OutOfMemoryError("tried to allocate")

    chosen = [Contender("glutton", "float", "sum", "huge", full), registry.CONTENDERS[0]]
    ready, failed = forward.prepared(chosen, Table(TINY), forward.batches(TINY, 2, CPU, torch.int32), quiet)
    assert [turn.name for turn in ready] == [floats.FP32]
    assert failed["glutton"].startswith("out of memory: its table")


# Turns ---------------------------------------------------------------------------------------------------------------


def test_turns_are_timed_called_and_captured() -> None:
    seen: list[int] = []
    numbers = [(number,) for number in range(3)]
    taken = take_turns(
        HostClock(CPU), [Turn("a", seen.append, numbers), Turn("b", max, [(1, 2)], captures=False)], budget=0.0
    )
    assert set(seen) == {0, 1, 2}
    assert len(taken.called["a"]) == len(taken.captured["a"]) == len(taken.called["b"]) >= turns.FEWEST_ROUNDS
    assert "b" not in taken.captured
    assert taken.failed == taken.uncaptured == {}


def test_one_who_breaks_down_later_goes_and_his_numbers_too() -> None:
    calls = iter(range(400))

    def tire(number: int) -> None:
        if next(calls) > 300:
            raise torch.cuda.OutOfMemoryError("later")

    slow = Turn("tired", tire, [(0,)] * 100, captures=False)
    taken = take_turns(HostClock(CPU), [slow, Turn("well", max, [(1, 2)])], budget=0.0)
    assert list(taken.called) == ["well"]
    assert list(taken.failed) == ["tired"]


def test_what_cannot_be_captured_is_called_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HostClock, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(HostClock, "capture", refuse)
    taken = take_turns(HostClock(CPU), [Turn("reader", max, [(1, 2)])], budget=0.0)
    assert taken.captured == {}
    assert "not permitted" in taken.uncaptured["reader"]
    result = {CALLED: taken.called, CAPTURED: taken.captured}
    assert seconds(result, CAPTURED, "reader") == seconds(result, CALLED, "reader")


def test_a_wall_clock_has_the_device_wait() -> None:
    assert 0.0 <= WallClock(HostClock(CPU)).seconds(lambda: None) < 1.0


def test_ratios_and_differences_are_those_of_rounds() -> None:
    result = {CALLED: {"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, CAPTURED: {}}
    times, more = ratio(result, CALLED, "a", "b"), difference(result, CALLED, "a", "b")
    assert times is not None
    assert more is not None
    assert (times.value, more.value) == (2.0, 2.0)
    assert ratio(result, CALLED, "a", "c") is None


def test_a_graph_is_compared_with_a_graph() -> None:
    result = {CALLED: {"a": [8.0], "b": [4.0]}, CAPTURED: {"b": [1.0]}}
    called = ratio(result, CAPTURED, "a", "b")
    result[CAPTURED]["a"] = [5.0]
    captured = ratio(result, CAPTURED, "a", "b")
    assert called is not None
    assert captured is not None
    assert (called.value, captured.value) == (2.0, 5.0)


# Numbers and pages ---------------------------------------------------------------------------------------------------


def test_traffic_is_counted_in_sectors() -> None:
    assert [traffic.row_sectors(size) for size in (4, 32, 33, 512)] == [1, 1, 2, 16]
    entries, shape = 65_536 * 20, Shape.parse(MAIN)
    assert traffic.sum_bytes(shape) == entries * (4 + 32) + 65_536 * 512
    assert traffic.majority_bytes(shape) == entries * (4 + 32) + 65_536 * 16
    assert traffic.float_bytes(shape, 2) == entries * (4 + 256) + 65_536 * 256


def invented(shape: str, values: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"skipped": {}, "failed": {}, "uncaptured": {}, CALLED: values, CAPTURED: values}
    return {"shape": shape, "bags": Shape.parse(shape).bags, **parts, **more}


def invented_results() -> dict[str, Any]:
    """Results in which every contender takes a second, except packedbag, which takes a thousandth."""

    def taken(name: str) -> list[float]:
        return [0.001 if name.startswith("packedbag") else 1.0] * 3

    bags = {one.name: taken(one.name) for one in registry.CONTENDERS if one.family != "low-bit"}
    families = {one.name: one.family for one in registry.CONTENDERS}
    missing = {"FBGEMM IntNBit INT4": "it is not there"}
    one_bag = {one.name: taken(one.name) for one in latency.CONTENDERS}
    phases = dict.fromkeys(step.PHASES, 1e-3)
    steps = {name: taken(name) for name in step.contenders()}
    facts = {
        "device": "cuda",
        "name": "Invented Card 9",
        "capability": "9.9",
        "memory_bytes": 141e9,
        "cache_bytes": 5e7,
    }
    facts |= {"multiprocessors": 9, "processor": "P", "system": "S", "load_before": 0.0, "backend": "cupy_cuda"}
    facts |= {"driver_version": "580.1", "torch": "2.99", "cupy": "14.9", "python": "3.99"}
    return {
        "machine": facts,
        "errors": {},
        "figures": True,
        "copy": {"bytes": 2 << 30, "rates": [4e12] * 3},
        "forward": [invented(shape.name, bags, families=families, skipped=missing) for shape in FORWARD],
        "latency": [invented(ONE_BAG, one_bag)],
        "step": [invented(MAIN, steps, phases=phases, peak_bytes=dict.fromkeys(steps, 5_000_000))],
        "capacity": capacity.computed(141e9),
    }


def row_of(text: str, what: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {what} |"))


def test_the_page_states_every_goal_and_what_was_measured() -> None:
    text = page.render(invented_results())
    for goal in GOALS:
        row = row_of(text, goal.what)
        assert goal.target() in row
        assert goal.command in row
        assert "| met |" in row or "| short | " in row
    assert "1000 (1000 to 1000), called from Python 1000 | met |" in text
    assert "# Invented Card 9, measured" in text
    assert "driver 580.1" in text
    assert "cupy 14.9" in text
    assert "- FBGEMM IntNBit INT4: it is not there" in text
    assert "computed from the card's memory, not run" in row_of(text, GOALS[-1].what)
    assert "not a measurement" not in text


def test_a_goal_that_is_missed_says_why_from_the_numbers() -> None:
    results = invented_results()
    for part in ("forward", "latency", "step"):
        for result in results[part]:
            result[CALLED] = result[CAPTURED] = {name: [0.5] * 3 for name in result[CALLED]} | {floats.FP32: [0.4] * 3}
    _, rows = tables.goals_grid(results, commands=False)
    short = [row for row in rows if row[3] == "short"]
    assert len(short) == len(GOALS) - 2  # equal to the ceiling, and 3e9 rows fit
    assert all(row[4] for row in short)
    copied = reasons.against_traffic(MAIN, packed.SUM, traffic.sum_bytes, floats.FP32)(results)
    assert "its 81 MB in sectors of 32 bytes take 20.2 us at the copy rate, which would be 19817x" in copied


def test_a_step_is_compared_on_the_small_table_where_the_peer_has_no_room_on_the_large_one() -> None:
    results = invented_results()
    del results["step"][0][CALLED][step.DENSE]
    results["step"].append(
        invented(SMALL_STEP, {step.DENSE: [3.0], step.name_of(8): [0.1]}, phases=None, peak_bytes={})
    )
    goal = next(goal for goal in GOALS if step.DENSE in goal.what)
    found = goal.find(results)
    assert found is not None
    assert (round(found.value), found.detail) == (30, SMALL_STEP)


def test_goals_without_numbers_are_not_called_met() -> None:
    _, rows = tables.goals_grid({"machine": {}}, commands=False)
    assert {row[3] for row in rows} == {"not measured"}


def test_goals_are_those_that_were_set() -> None:
    bounds = sorted(goal.bound for goal in GOALS)
    assert bounds == sorted([0.85, 0.70, *[4, 2.5, 10] * 3, 30, 3, 20, 10, 0, 3])


def test_what_of_packedbags_failed_makes_the_run_a_failure() -> None:
    results = invented_results()
    assert tables.broken(results) == []
    results["step"][0]["failed"] = {step.DENSE: "out of memory: too large", step.name_of(8): "ValueError: no"}
    assert tables.broken(results) == [f"{step.name_of(8)}, step {MAIN}: ValueError: no"]


def test_figures_are_drawn_from_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = invented_results()
    for name in figures.FIGURES:
        figures.draw(name, results[name], tmp_path / f"{name}.svg")
        assert "65536 x 20" in (tmp_path / f"{name}.svg").read_text()


def test_a_card_names_its_page() -> None:
    assert (slug("NVIDIA H200"), slug("NVIDIA GeForce RTX 4090 (x)")) == ("nvidia_h200", "nvidia_geforce_rtx_4090_x")


def test_pages_of_cards_in_the_tree_are_those_of_their_numbers() -> None:
    for path in (ROOT / "docs" / "benchmarks").glob("*.json"):
        results = json.loads(path.read_text())
        if isinstance(results.get("machine"), dict) and results["machine"].get("device") == "cuda":
            assert path.with_suffix(".md").read_text() == page.render(results)
