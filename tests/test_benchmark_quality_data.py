"""The data of the bench of learning: what the files say, and clicks whose best AUC is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks.quality.config import Config
from benchmarks.quality.data import ml1m, movielens_100k, registry, synthetic
from benchmarks.quality.data.click_data import BagField, ClickData, MissingDataError
from benchmarks.quality.run import Run
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.datasets.movielens import MovieLens
from packedbag.recsys.split import TEST
from tests.recsys.datasets import movielens_files as files


def ml1m_file(path: Path) -> Path:
    """Write a file of the layout of ml1m.npz, small and made up."""
    rows = np.array([4, 3, 2, 2, 2, 3, 2, 5])
    offsets = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    ids = np.array([[3, 2, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [2, 2, 0, 1, 0, 1, 0]])
    np.savez(
        path / "ml1m.npz",
        X=(ids + offsets[:7]).astype(np.uint16),
        item_genres=np.array([[18, 65535], [19, 22], [20, 21]], np.uint16),
        field_offsets=offsets,
        rating_class=np.array([2, 0, 1, 0], np.uint8),
        split=np.array([0, 1, 0, 2], np.uint8),
    )
    return path


def test_ml1m_drops_the_middle_class_and_counts_each_field_from_0(tmp_path: Path) -> None:
    data = ml1m.load(str(ml1m_file(tmp_path)))
    assert data.single.tolist() == [[3, 2, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0, 0], [2, 2, 0, 1, 0, 1, 0]]
    assert data.labels.tolist() == [1, 0, 0]
    assert [part.tolist() for part in (data.train, data.valid, data.test)] == [[0], [1], [2]]
    assert data.tables() == [*zip(ml1m.NAMES, (4, 3, 2, 2, 2, 3, 2), strict=True), ("genres", 5)]
    batch = data.batch(torch.tensor([1, 0]))
    ((ids, offsets),) = batch.bags
    assert (ids.tolist(), offsets.tolist()) == ([0, 2, 3], [0, 1, 3])
    assert batch.labels.tolist() == [0, 1]


def test_ml1m_is_found_by_option_or_environment_and_its_absence_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ml1m.ENVIRONMENT, raising=False)
    with pytest.raises(MissingDataError, match="pass --data-path, or set PACKEDBAG_ML1M"):
        ml1m.load()
    with pytest.raises(MissingDataError, match="there is no"):
        ml1m.load(str(tmp_path))
    monkeypatch.setenv(ml1m.ENVIRONMENT, str(ml1m_file(tmp_path) / "ml1m.npz"))
    assert len(ml1m.load().labels) == 3


def test_movielens_100k_has_the_rows_of_the_command_that_trains_on_it(tmp_path: Path) -> None:
    folder = files.folder(tmp_path / "data")
    data = movielens_100k.load(str(folder))
    source = MovieLens(folder)
    dataset = Dataset(source, source.split)
    dataset.prepare()
    (expected,) = dataset.batches(TEST, 1 << 30)
    batch = data.batch(data.test)
    assert batch.labels.tolist() == expected.labels.tolist()
    assert [name for name, _ in data.tables()] == [field.name for field in dataset.fields]
    assert [rows for _, rows in data.tables()] == [ids.rows for ids in dataset.ids]
    found = [(ids, torch.arange(len(ids) + 1)) for ids in batch.single.T] + batch.bags
    for (ids, offsets), column in zip(found, expected.columns, strict=True):
        assert ids.tolist() == column.indices.tolist()
        assert offsets.tolist() == column.offsets.tolist()


def test_movielens_100k_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="movielens-100k"):
        movielens_100k.load(str(tmp_path))


def test_a_bag_without_ids_is_empty() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    bag = BagField("bag", 5, torch.tensor([[-1, -1], [4, -1], [-1, 3]]))
    data = ClickData((), (), torch.zeros(3, 0, dtype=torch.int64), (bag,), torch.zeros(3), nothing, nothing, nothing)
    ((ids, offsets),) = data.batch(torch.tensor([2, 0, 1])).bags
    assert (ids.tolist(), offsets.tolist()) == ([3, 4], [0, 1, 1, 2])


@pytest.mark.parametrize("bag_length", [0, 3])
def test_the_teacher_is_the_sum_over_pairs_of_fields(bag_length: int) -> None:
    single = np.array([[0, 1], [2, 2]])
    bag = np.array([[1, 2, -1], [0, -1, -1]])[:, :bag_length]
    found = synthetic.teacher(np.random.default_rng(3), single, bag, 4, 2)
    generator = np.random.default_rng(3)
    drawn = [(generator.standard_normal((4, 2)), generator.standard_normal(4)) for _ in range(2 + (bag_length > 0))]
    for row in range(2):
        parts = [(u[single[row, f]], w[single[row, f]]) for f, (u, w) in enumerate(drawn[:2])]
        if bag_length:
            (u, w), real = drawn[2], bag[row][bag[row] >= 0]
            parts.append((u[real].mean(0), w[real].mean()))
        pairs = sum(parts[i][0] @ parts[j][0] for i in range(len(parts)) for j in range(i))
        assert found[row] == pytest.approx(pairs + sum(w for _, w in parts))


def test_the_best_auc_is_that_of_the_true_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import metrics

    kept: list[Any] = []
    monkeypatch.setattr(synthetic, "teacher", lambda *given: kept.append(np.arange(given[1].shape[0]) % 7.0) or kept[0])
    data = synthetic.load(examples=1000, spread=2.0, bias=-0.5)
    logits = (kept[0] - kept[0].mean()) / kept[0].std() * 2.0 - 0.5
    probabilities = 1 / (1 + np.exp(-logits))
    assert data.best is not None
    labels = data.labels.numpy()[900:]
    assert data.best["auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities[900:]))
    assert data.best["log_loss"] == pytest.approx(metrics.log_loss(labels, probabilities[900:]))
    assert data.labels.mean() == pytest.approx(probabilities.mean(), abs=0.05)


def test_no_model_passes_the_best_auc_and_a_good_one_comes_near() -> None:
    options = {"examples": 20_000, "fields": 3, "field_rows": 20, "rank": 2}
    data = registry.load("synthetic", None, options)
    assert data.best is not None
    config = Config("synthetic", "fp32-adam", 8, epochs=6, batch_size=250, hidden=(32,), table_lr=0.02, dropout=0.0)
    found = Run(config, data).train()
    assert all(epoch["test_auc"] <= data.best["auc"] for epoch in found["curve"])
    assert all(epoch["test_log_loss"] >= data.best["log_loss"] for epoch in found["curve"])
    assert found["test_auc"] > data.best["auc"] - 0.03
    assert found["known_best"] == data.best


def test_data_are_decided_by_their_options() -> None:
    options = {"examples": 500, "fields": 2, "field_rows": 30, "bag_length": 2}
    one, same = (registry.load("synthetic", None, options) for _ in range(2))
    assert torch.equal(one.single, same.single)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.labels, registry.load("synthetic", None, {**options, "data_seed": 1}).labels)
    assert (len(one.train), len(one.valid), len(one.test)) == (400, 50, 50)
    assert int(one.single.max()) < 30
    assert set((one.bags[0].ids >= 0).sum(1).tolist()) == {1, 2}


def test_ids_are_drawn_in_proportion_to_a_power_of_their_rank() -> None:
    counts = np.bincount(synthetic._zipf(np.random.default_rng(0), 50, 1.0, 100_000), minlength=50)
    frequent = np.sort(counts)[::-1]
    assert frequent[0] / frequent[9] == pytest.approx(10, rel=0.1)


def test_a_data_set_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="data is 'criteo'; it must be one of ml-1m"):
        registry.load("criteo", None, {})
