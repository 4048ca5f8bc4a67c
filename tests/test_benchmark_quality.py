"""The bench of learning files runs by their settings, resumes grids, and writes what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from benchmarks.quality import __main__ as command
from benchmarks.quality import goals, grids, methods, page, results, runner, table
from benchmarks.quality.config import Config
from benchmarks.quality.schedule import SCHEDULES

ROOT = Path(__file__).parents[1]
CONFIG = Config("ml-1m", "counter", 128, bits=8, table_lr=0.01, optimizer_options={"adaptivity": "ema"})


def silent(text: str) -> None:
    """Say nothing."""


def entry(config: Config, auc: float = 0.8, **more: Any) -> dict[str, Any]:
    facts = {"processor": "p", "jobs": 2, "python": "3", "torch": "2", "numpy": "2", "packedbag": "0", "backend": "b"}
    result = {
        "test_auc": auc,
        "valid_auc": auc,
        "test_log_loss": 0.3,
        "best_epoch": 1,
        "seconds": 10.0,
        "steps": 100,
        "training_bits": 8.25,
        "serving_bits": 1.0,
        "training_bits_row": 1056,
        "serving_bits_row": 128,
        "table_bytes": 1000,
        "state_bytes": 7000,
        "serving_bytes": 1000,
        "before_bytes": 10**8,
        "peak_bytes": 2 * 10**8,
        "curve": [{"test_auc": auc - 0.1}, {"test_auc": auc}],
        "options": {},
        "machine": {**facts, "date": "2026-01-01"},
    }
    return {"key": config.key, "config": config.plain(), "result": {**result, **more}}


def test_a_key_does_not_change() -> None:
    # Pinned: another key for the same settings would throw every result away. A default that moves shows here, too.
    assert Config("ml-1m", "fp32-adam", 16).canonical() == '{"data":"ml-1m","embedding_dim":16,"method":"fp32-adam"}'
    assert (Config("ml-1m", "fp32-adam", 16).key, CONFIG.key) == ("1495b963f392", "dc37613aba22")


def test_every_setting_decides_the_key() -> None:
    other: dict[str, Any] = {
        "data": "synthetic",
        "method": "frozen",
        "embedding_dim": 64,
        "bits": 4,
        "seed": 1,
        "epochs": 3,
        "batch_size": 8,
        "lr": 0.5,
        "weight_decay": 0.5,
        "table_lr": 0.5,
        "accumulate": 2,
        "scale_lr": 0.5,
        "l2": 0.5,
        "schedule": "cosine",
        "scale": "row",
        "bits_per_value": 4,
        "code": "binary",
        "initial_scale": 0.5,
        "field_scales": {"user": 0.5},
        "init_std": 0.5,
        "hidden": (4,),
        "dropout": 0.5,
        "input_norm": True,
        "optimizer_options": {},
        "data_options": {"a": 1},
    }
    assert set(other) == set(CONFIG.plain())
    keys = {replace(CONFIG, **{name: value}).key for name, value in other.items()}
    assert len(keys | {CONFIG.key}) == len(other) + 1


def test_how_a_number_or_a_mapping_is_written_does_not_decide_the_key() -> None:
    one = replace(CONFIG, optimizer_options={"decay": 1, "adaptivity": "ema"}, l2=0)
    assert one.key == replace(CONFIG, optimizer_options={"adaptivity": "ema", "decay": 1.0}, l2=0.0).key


def test_a_config_comes_back_from_its_json() -> None:
    assert Config.from_plain(json.loads(json.dumps(CONFIG.plain()))) == CONFIG
    with pytest.raises(ValueError, match="a run has no setting colour"):
        Config.from_plain({**CONFIG.plain(), "colour": 1})


@pytest.mark.parametrize("wrong", [{"schedule": "linear"}, {"scale": "column"}, {"epochs": 0}, {"batch_size": 1}])
def test_a_setting_that_is_not_allowed_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_schedules_end_where_they_should() -> None:
    assert [SCHEDULES["step"](done) for done in (0, 0.59, 0.6, 0.84, 0.85, 0.999)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert SCHEDULES["cosine"](0) == 1
    assert SCHEDULES["cosine"](1) == pytest.approx(0)
    assert SCHEDULES["constant"](0.9) == 1


def test_a_torn_line_is_skipped_with_a_note_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "quality.jsonl"
    results.append(path, CONFIG, {"test_auc": 0.5})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    notes: list[str] = []
    assert [each["key"] for each in results.read(path, notes.append)] == [CONFIG.key]
    assert "line 2, is no whole result" in notes[0]
    other = replace(CONFIG, seed=1)
    results.append(path, other, {"test_auc": 0.6})
    assert [each["key"] for each in results.read(path, silent)] == [CONFIG.key, other.key]


def test_what_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        results.append(tmp_path / "q.jsonl", CONFIG, {"test_auc": float("nan")})
    assert results.read(tmp_path / "q.jsonl") == []


def test_a_grid_runs_resumes_and_gets_a_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "quality.jsonl"
    grid = grids.GRIDS["smoke"]("synthetic")
    assert {config.method for config in grid} == {name for name in methods.METHODS if not methods.missing(name)}
    first = runner.run_grid(grid[:2], path, jobs=0, say=silent)
    assert (len(first.done), len(first.failed)) == (2, 0)
    second = runner.run_grid(grid, path, jobs=0, say=silent)
    assert (second.skipped, second.done) == (grid[:2], grid[2:])
    entries = results.read(path)
    assert results.missing(grid, entries) == []
    assert len(path.read_text().splitlines()) == len(grid)
    page.write(entries, tmp_path / "quality.md", tmp_path / "figures")
    text = (tmp_path / "quality.md").read_text()
    assert "The best AUC possible is" in text
    assert all(methods.METHODS[config.method].title in text for config in grid)
    assert len(list((tmp_path / "figures").glob("quality_synthetic_*.svg"))) == 3


def test_a_run_in_a_process_of_its_own_gives_the_same_result(tmp_path: Path) -> None:
    grid = grids.chosen(grids.GRIDS["smoke"]("synthetic"), ["counter"])
    found = []
    for jobs in (0, 1):
        path = tmp_path / f"{jobs}.jsonl"
        assert runner.run_grid(grid, path, jobs=jobs, say=silent).done == grid
        found.append(results.read(path)[0]["result"])
    here, there = found
    # One thread there, several here: sums of the perceptron may differ in their last bits.
    assert there["test_auc"] == pytest.approx(here["test_auc"], abs=0.02)
    assert there["training_bits"] == here["training_bits"]
    assert there["before_bytes"] <= there["peak_bytes"]


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_run_that_fails_is_reported_and_the_grid_goes_on(tmp_path: Path, jobs: int) -> None:
    (good,) = grids.chosen(grids.GRIDS["smoke"]("synthetic"), ["frozen"])
    bad = replace(good, method="counter", bits=99)
    said: list[str] = []
    outcome = runner.run_grid([bad, good], tmp_path / "q.jsonl", jobs=jobs, say=said.append)
    assert (outcome.failed, outcome.done) == ([bad], [good])
    assert any(line.startswith(f"FAILED {bad.key}") and "bits is 99" in line for line in said)


def test_a_data_set_that_is_not_here_is_skipped_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACKEDBAG_ML1M", raising=False)
    said: list[str] = []
    outcome = runner.run_grid(grids.GRIDS["confirm"]("ml-1m"), tmp_path / "q.jsonl", say=said.append)
    assert len(outcome.without_data) == len(grids.GRIDS["confirm"]("ml-1m"))
    assert said[0] == "skipped: ml-1m needs ml1m.npz: pass --data-path, or set PACKEDBAG_ML1M"


@pytest.mark.parametrize("name", ["screen", "confirm", "headline"])
def test_a_grid_names_no_run_twice_and_only_methods_there_are(name: str) -> None:
    grid = grids.GRIDS[name]("ml-1m")
    assert len({config.key for config in grid}) == len(grid)
    assert {config.method for config in grid} <= set(methods.METHODS)
    assert len({config.seed for config in grid}) == {"screen": 1, "confirm": 3, "headline": 5}[name]


def test_what_was_confirmed_counts_for_the_headline() -> None:
    headline = {config.key for config in grids.GRIDS["headline"]("ml-1m")}
    assert {config.key for config in grids.GRIDS["confirm"]("ml-1m")} <= headline


def wanted(line: str) -> list[Config]:
    return command.wanted(command.parse(line.split()))


def test_options_choose_and_change_runs() -> None:
    (config,) = wanted("run confirm --method counter --bits 8 --seed 1 --set epochs=3 data_options.a=1")
    assert (config.method, config.bits, config.seed, config.epochs) == ("counter", 8, 1, 3)
    assert config.data_options == {"a": 1}
    found = wanted("run --data synthetic --method counter --dim 32 64 --bits 4 --set schedule=cosine")
    assert [(each.embedding_dim, each.bits, each.schedule) for each in found] == [(32, 4, "cosine"), (64, 4, "cosine")]
    found = wanted("run --method fp32-adam counter --dim 16 --bits 4 8")
    assert [(each.method, each.bits) for each in found] == [("fp32-adam", None), ("counter", 4), ("counter", 8)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run smoke --set colour=1", "a run has no colour"),
        ("run smoke --set epochs", "it takes NAME=VALUE"),
        ("run --method counter", "say which runs"),
    ],
)
def test_options_that_mean_nothing_are_refused(line: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        wanted(line)


def test_missing_says_which_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "q.jsonl"
    for seed in (0, 2):
        results.append(path, grids.recipe("ml-1m", "counter", 128, 8, seed), {})
    where = ["--results", str(path)]
    assert command.main(["missing", "confirm", "--method", "counter", "--bits", "8", *where]) == 1
    assert "ml-1m counter D=128 k=8: seed 1" in capsys.readouterr().out
    assert command.main(["missing", "confirm", "--method", "counter", "--bits", "8", "--seed", "0", "2", *where]) == 0


def test_a_page_of_no_results_says_what_is_missing(tmp_path: Path) -> None:
    page.write([], tmp_path / "q.md", tmp_path)
    text = (tmp_path / "q.md").read_text()
    assert "No run yet." in text
    assert text.count(f"| {goals.NOT_MEASURED} |") == len(goals.GOALS)
    assert "- ml-1m counter D=128 k=8: seed 0, 1, 2, 3, 4" in text


def test_a_choice_is_made_on_validation_rows_and_a_repeated_run_beats_a_lucky_one() -> None:
    tuned, lucky = replace(CONFIG, l2=0.1), replace(CONFIG, l2=0.2)
    entries = [entry(replace(CONFIG, seed=seed), 0.8, valid_auc=0.81) for seed in range(2)]
    entries += [entry(replace(tuned, seed=seed), 0.7, valid_auc=0.82) for seed in range(2)]
    entries += [entry(lucky, 0.9, valid_auc=0.9)]
    best = table.best(table.groups(entries))
    assert best is not None
    assert best.config == tuned


def test_goals_compare_means_and_say_how_many_seeds_they_are_of() -> None:
    entries = [entry(replace(CONFIG, seed=seed), auc) for seed, auc in enumerate((0.8, 0.9))]
    entries += [entry(Config("ml-1m", "fp32-adam", 16, seed=seed), 0.8504, training_bits=96) for seed in range(5)]
    entries += [entry(Config("ml-1m", "ste-adam", 128), 0.86, training_bits=96)]
    _, rows = goals.goals_grid({"ml-1m": table.groups(entries)})
    measured = [row[3:] for row in rows]
    assert measured[0] == ["-0.00040, log loss +0.0000 (packed, CounterSGD, k = 8, D = 128)", "yes, 2 of 5 seeds"]
    assert measured[1] == [goals.NOT_MEASURED, table.NONE]  # 8.25 bits are no 4.5
    assert measured[3] == ["-0.01000 (packed, CounterSGD, k = 8, D = 128)", "**no**, 1 of 5 seeds"]
    assert measured[4] == [goals.NOT_MEASURED, table.NONE]  # no fp32 table of this D


def test_a_page_says_where_a_default_changed_under_its_key(tmp_path: Path) -> None:
    entries = [entry(replace(CONFIG, seed=seed), options={"decay": seed}) for seed in range(2)]
    assert "Seeds of one row were run with different defaults" in page.render(entries)
    assert "different defaults" not in page.render(entries[:1])


def test_the_command_explains_itself() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "which runs have no result yet" in shown.stdout
