"""The bench of learning counts what tables hold, and its own tables and optimizers do what their rules say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks.quality import grids, methods
from benchmarks.quality.config import Config
from benchmarks.quality.data import registry
from benchmarks.quality.run import DivergedError, Run
from benchmarks.quality.step_time import WARM_STEPS, seconds_of_steps
from benchmarks.quality.tables.fp32 import Fp32Table, RowwiseAdagrad
from benchmarks.quality.tables.int8 import Int8Adagrad, Int8Table
from benchmarks.quality.tables.straight_through import ClippedAdam, StraightThroughTable

OPTIONS = {"examples": 600, "fields": 2, "field_rows": 10, "bag_length": 3}
ROWS = 3 * 10  # three tables of ten rows
TABLES = 3


@pytest.fixture(scope="module")
def data() -> Any:
    return registry.load("synthetic", None, OPTIONS)


def config(method: str, dim: int = 40, **settings: Any) -> Config:
    base = {"epochs": 1, "batch_size": 120, "hidden": (8,), "data_options": OPTIONS}
    return Config("synthetic", method, dim, **{**base, **settings})


#: By hand, for D = 40, two words a row: bytes of all tables, of their optimizer's state, and in serving.
#: A table's scale is a float; Adam keeps two more and a count for it. A packed optimizer keeps eight totals a table.
SCALES, SCALE_STATE, TOTALS = TABLES * 4, TABLES * 12, TABLES * 64
WORDS = ROWS * 2 * 4
HAND = {
    ("fp32-adam", None): (ROWS * 40 * 4, ROWS * 40 * 8 + TABLES * 4, ROWS * 40 * 4),
    ("fp32-adagrad", None): (ROWS * 40 * 4, ROWS * 4, ROWS * 40 * 4),
    ("ste-adam", None): (ROWS * 40 * 4 + SCALES, ROWS * 40 * 8 + TABLES * 4 + SCALE_STATE, WORDS + SCALES),
    ("int8-adagrad", None): (ROWS * (40 + 8), ROWS * 4, ROWS * (40 + 8)),
    ("frozen", None): (WORDS + SCALES, SCALE_STATE, WORDS + SCALES),
    ("counter", 8): (WORDS + SCALES, WORDS * 7 + ROWS * 4 + SCALE_STATE + TOTALS, WORDS + SCALES),
    ("counter", 2): (WORDS + SCALES, WORDS * 1 + ROWS * 4 + SCALE_STATE + TOTALS, WORDS + SCALES),
    ("bit-flip", None): (WORDS + SCALES, ROWS * 4 + SCALE_STATE + TOTALS, WORDS + SCALES),
}


@pytest.mark.parametrize(("method", "bits"), HAND)
def test_bits_are_those_counted_by_hand(data: Any, method: str, bits: int | None) -> None:
    found = Run(config(method, bits=bits), data).train()
    table, state, serving = HAND[method, bits]
    assert (found["table_bytes"], found["state_bytes"], found["serving_bytes"]) == (table, state, serving)
    assert (found["weights"], found["rows"]) == (ROWS * 40, ROWS)
    assert found["training_bits"] == pytest.approx(8 * (table + state) / (ROWS * 40))
    assert found["serving_bits_row"] == pytest.approx(8 * serving / ROWS)


def test_row_scales_are_counted_as_a_float_a_row(data: Any) -> None:
    found = Run(config("counter", bits=8, scale="row"), data).train()
    assert found["serving_bytes"] == WORDS + ROWS * 4
    assert Run(config("counter", bits=8, scale="none"), data).train()["serving_bytes"] == WORDS


def test_the_result_is_the_epoch_with_the_best_validation_auc(data: Any) -> None:
    found = Run(config("fp32-adam", epochs=4, table_lr=0.05), data).train()
    curve = found["curve"]
    assert len(curve) == 4
    best = max(range(4), key=lambda epoch: curve[epoch]["valid_auc"])
    assert found["best_epoch"] == best
    assert (found["test_auc"], found["test_log_loss"]) == (curve[best]["test_auc"], curve[best]["test_log_loss"])
    assert found["steps"] == 4 * 4


@pytest.mark.parametrize("method", [name for name in methods.METHODS if not methods.missing(name)])
def test_a_run_is_decided_by_its_settings(data: Any, method: str) -> None:
    one = config(method, bits=4 if method in ("counter", "vote-flip") else None, epochs=2)
    first, again = (Run(one, data).train()["curve"] for _ in range(2))
    assert first == again
    assert Run(replace(one, seed=1), data).train()["curve"] != first


def test_a_seed_decides_the_first_weights_and_the_rounding(data: Any) -> None:
    one, other = (Run(config("counter", bits=8, seed=seed), data) for seed in (0, 1))
    assert not torch.equal(one.tables[0].bag.words, other.tables[0].bag.words)
    assert [run.optimizer.param_groups[0]["seed"] for run in (one, other)] == [0, 1]


def test_scoring_leaves_dropout_out_and_changes_no_statistics(data: Any) -> None:
    run = Run(config("fp32-adam", dropout=0.5), data)
    run.epoch()
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert run.score(data.valid, "valid") == run.score(data.valid, "valid")
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_frozen_bits_stay_and_their_scales_learn(data: Any) -> None:
    run = Run(config("frozen", initial_scale=0.5, field_scales={"field1": 0.25}), data)
    assert [float(table.bag.scale.detach()) for table in run.tables] == [0.5, 0.25, 0.5]
    before = [table.bag.words.clone() for table in run.tables]
    found = run.train()
    assert all(torch.equal(table.bag.words, old) for table, old in zip(run.tables, before, strict=True))
    assert found["curve"][0]["changed"] == 0
    assert found["scales"] != [0.5, 0.25, 0.5]


def test_trained_bits_change_and_the_options_that_trained_them_are_kept(data: Any) -> None:
    found = Run(config("counter", bits=4, optimizer_options={"adaptivity": "adagrad"}), data).train()
    assert 0 < found["curve"][0]["changed"] <= 1
    assert (found["options"]["bits"], found["options"]["adaptivity"]) == (4, "adagrad")


def test_all_rates_follow_the_schedule(data: Any) -> None:
    run = Run(config("counter", bits=8, schedule="cosine", lr=0.1, scale_lr=0.2, table_lr=0.3), data)
    run.schedule.set(run.schedule._steps // 2)
    assert [group["lr"] for group in run.dense.param_groups] == pytest.approx([0.05, 0.1])
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.15)


def test_a_loss_that_is_no_number_ends_the_run(data: Any) -> None:
    run = Run(config("fp32-adam"), data)
    with torch.no_grad():
        run.model.perceptron[-1].bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="the training loss is nan at step 0"):
        run.train()


def test_a_method_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    monkeypatch.setitem(methods.METHODS, "future", replace(methods.METHODS["counter"], needs="FutureFlip"))
    assert methods.missing("future") == "packedbag.optim has no FutureFlip"
    with pytest.raises(methods.MissingMethodError, match="FutureFlip"):
        Run(config("future"), data)
    with pytest.raises(methods.MissingMethodError, match="there is no method 'nothing'"):
        methods.find("nothing")


def test_every_recipe_is_of_a_method() -> None:
    assert set(grids.RECIPES) == set(methods.METHODS)
    assert set(grids.VARIED) <= set(methods.METHODS)


def test_a_mean_of_a_bag_is_that_of_its_rows() -> None:
    torch.manual_seed(0)
    ids, offsets = torch.tensor([1, 2, 2, 0]), torch.tensor([0, 3, 3, 4])
    int8, signs = Int8Table(4, 8, std=1.0), StraightThroughTable(4, 8, std=1.0, initial_scale=0.5)
    for table, weights in (
        (Fp32Table(4, 8, std=1.0, sparse=False), None),
        (int8, int8.read(torch.arange(4))),
        (signs, torch.where(signs.latent >= 0, 0.5, -0.5)),
    ):
        weights = table.bag.weight if weights is None else weights
        means = torch.stack([weights[[1, 2, 2]].mean(0), torch.zeros(8), weights[0]])
        torch.testing.assert_close(table(ids, offsets), means)
        torch.testing.assert_close(table(ids[:, None]), weights[ids])


def test_rowwise_adagrad_divides_by_the_root_of_a_rows_summed_mean_squares() -> None:
    table = Fp32Table(4, 3, std=1.0, sparse=True)
    weight = table.bag.weight
    optimizer = RowwiseAdagrad([weight], lr=0.1, l2=0.5)
    expected, total = weight.detach().clone(), 0.0
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([[2], [2]])).sum().backward()  # the row occurs twice: each column's gradient is 2
        optimizer.step()
        grad = 2 + 0.5 * expected[2]
        total += float(grad.square().mean())
        expected[2] -= 0.1 * grad / (total**0.5 + 1e-8)
        torch.testing.assert_close(weight.detach(), expected)


def test_int8_rows_are_read_back_within_a_level_and_right_on_average() -> None:
    torch.manual_seed(0)
    table, weights = Int8Table(1, 64, std=1.0), torch.randn(1, 64)
    row = torch.tensor([0])
    level = float(weights.max() - weights.min()) / 255
    total = torch.zeros(1, 64)
    for _ in range(400):
        table.write(row, weights)
        assert (table.read(row) - weights).abs().max() <= level * 1.001
        total += table.read(row)
    # A rounding error has a standard deviation of at most half a level; 400 draws leave 1/40 of a level, five of those.
    assert (total / 400 - weights).abs().max() < level * 5 / 40
    table.write(row, torch.full((1, 64), 0.3))
    torch.testing.assert_close(table.read(row), torch.full((1, 64), 0.3))


def test_int8_adagrad_touches_the_rows_of_the_batch_alone() -> None:
    torch.manual_seed(0)
    table = Int8Table(5, 16, std=1.0)
    optimizer = Int8Adagrad([table], lr=0.5, l2=0.0)
    before = table.read(torch.arange(5))
    table(torch.tensor([[1], [3]])).sum().backward()
    optimizer.step()
    moved = table.read(torch.arange(5)) - before
    assert not moved[[0, 2, 4]].any()
    # A gradient of ones: one step of -0.5, but for the rounding to 255 levels.
    assert (moved[[1, 3]] + 0.5).abs().max() < 0.05


def test_signs_pass_the_gradient_straight_to_latents_that_stay_in_their_range() -> None:
    table = StraightThroughTable(3, 2, std=0.1, initial_scale=0.5)
    with torch.no_grad():
        table.latent.copy_(torch.tensor([[0.99, -0.99], [0.0, -0.0], [0.3, -0.3]]))
    optimizer = ClippedAdam([table.latent], lr=0.1)
    out = table(torch.tensor([[0], [1]]))
    np.testing.assert_allclose(out.detach(), [[0.5, -0.5], [0.5, 0.5]])
    (out * torch.tensor([[-1.0, 1.0], [1.0, 1.0]])).sum().backward()
    np.testing.assert_allclose(table.latent.grad, [[-0.5, 0.5], [0.5, 0.5], [0, 0]])
    optimizer.step()
    np.testing.assert_allclose(table.latent.detach()[0], [1, -1])


def test_steps_are_timed_in_turns_and_those_that_warm_up_are_left_out(data: Any) -> None:
    runs = [Run(config("counter", bits=8), data), Run(config("fp32-adagrad"), data)]
    found = seconds_of_steps(runs, 4)
    assert [len(seconds) for seconds in found] == [4, 4]
    assert all(second > 0 for seconds in found for second in seconds)
    assert [run.steps for run in runs] == [WARM_STEPS + 4] * 2
