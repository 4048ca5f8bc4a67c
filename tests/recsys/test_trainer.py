"""`packedbag.recsys.trainer`."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.io.tables import load
from packedbag.recsys import checkpoint
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.export import export_tables, file_name
from packedbag.recsys.log import EpochLog
from packedbag.recsys.settings import Settings
from packedbag.recsys.trainer import Trainer
from packedbag.recsys.watcher import Stopped, Watcher, Watchers
from tests.recsys.memory_source import MemorySource

SETTINGS = Settings(embedding_dim=32, hidden=(16,), dropout=0.3, batch_size=32, epochs=3, patience=3, packed_lr=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps on a busy machine wait for threads far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told(Watcher):
    """Asks for a stop after ``stop_at`` steps, and keeps what it was told."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.steps = 0
        self.epochs = []

    def step(self, progress, rows):
        self.steps += 1

    def epoch(self, epoch):
        self.epochs.append(epoch)

    def stop_requested(self):
        return self.stop_at is not None and self.steps >= self.stop_at


def trainer(folder, kind="packed", settings=SETTINGS, source=None, hash_rows=None, **kwargs):
    dataset = Dataset(source or MemorySource(), "random", window_rows=200, hash_rows=hash_rows)
    dataset.prepare()
    return Trainer(kind, dataset, settings, folder, **kwargs)


def rates(run, watcher, **kwargs):
    """Run to the end; return (epoch, rows of the epoch before it, dense rate, rate of the tables) of each step."""
    found = []

    def step(progress, rows):
        tables, dense = run.optimizers
        found.append((progress.epoch, progress.rows - rows, dense.param_groups[0]["lr"], tables.param_groups[0]["lr"]))

    watcher.step = step
    run.run(watcher, **kwargs)
    return found


def same(a, b):
    """Whether two states are equal in every bit; the time taken is left out."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(k == "seconds" or same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


@pytest.mark.parametrize("kind", ["packed", "fp32"])
@pytest.mark.parametrize("stops", [[7], [15], [1, 1, 20]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, kind, stops):
    whole = trainer(tmp_path / "whole", kind)
    expected = whole.run(Told())
    for number, stop in enumerate(stops):
        with pytest.raises(Stopped):
            trainer(tmp_path / "parts", kind).run(Told(stop), resume=number > 0)
    parts = trainer(tmp_path / "parts", kind)
    found = parts.run(Told(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(parts.path))
    assert same(checkpoint.load(whole.best_path), checkpoint.load(parts.best_path))
    assert found.test == expected.test
    assert sum(stops) < checkpoint.load(whole.path)["progress"]["steps"]


def test_a_run_resumed_from_an_older_checkpoint_ends_the_same(tmp_path):
    # What kill -9 leaves: a checkpoint some steps old, and perhaps a best epoch that is newer than it.
    whole = trainer(tmp_path / "a", checkpoint_steps=10)
    whole.run(Told())
    killed = trainer(tmp_path / "b", checkpoint_steps=10)
    real_save = killed.save

    def save():
        real_save()
        if killed.progress.steps == 10:
            killed.save = lambda: None  # the process lives on, but nothing more reaches the disk

    killed.save = save
    log = EpochLog(tmp_path / "b")
    killed.run(log)
    assert checkpoint.load(killed.path)["progress"]["steps"] == 10
    assert len(log.path.read_text().splitlines()) == 3
    resumed = trainer(tmp_path / "b", checkpoint_steps=10)
    resumed.run(Watchers(Told(), log), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(resumed.path))
    assert [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("stops", [[7], [25]])
def test_a_resumed_run_whose_rows_are_not_counted_ahead_ends_the_same(tmp_path, stops):
    whole = trainer(tmp_path / "whole", hash_rows=50)
    whole.run(Told())
    for number, stop in enumerate(stops):
        with pytest.raises(Stopped):
            trainer(tmp_path / "parts", hash_rows=50).run(Told(stop), resume=number > 0)
    parts = trainer(tmp_path / "parts", hash_rows=50)
    parts.run(Told(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(parts.path))


@pytest.mark.parametrize("kind", ["packed", "fp32"])
def test_all_rates_fall_by_a_cosine_over_the_rows_of_the_whole_run(tmp_path, kind):
    run = trainer(tmp_path, kind)
    rows = run.dataset.counts[0]
    start = SETTINGS.packed_lr if kind == "packed" else SETTINGS.fp32_lr
    found = rates(run, Told())
    assert len(found) > 30
    for epoch, before, dense, tables in found:
        expected = (1 + math.cos(math.pi * (epoch + before / rows) / SETTINGS.epochs)) / 2
        assert dense == pytest.approx(SETTINGS.lr * expected, rel=1e-12)
        assert tables == pytest.approx(start * expected, rel=1e-12)
    assert found[0][2:] == (SETTINGS.lr, start)
    assert 0 < found[-1][2] < 0.01 * SETTINGS.lr


@pytest.mark.parametrize("kind", ["packed", "fp32"])
def test_constant_rates_stay(tmp_path, kind):
    run = trainer(tmp_path, kind, dataclasses.replace(SETTINGS, schedule="constant"))
    start = SETTINGS.packed_lr if kind == "packed" else SETTINGS.fp32_lr
    assert {step[2:] for step in rates(run, Told())} == {(SETTINGS.lr, start)}


def test_where_rows_are_not_counted_ahead_rates_begin_to_fall_with_the_second_epoch(tmp_path):
    run = trainer(tmp_path, hash_rows=50)
    assert run.dataset.counts is None
    found = rates(run, Told())
    rows = run.progress.epoch_rows
    assert rows == trainer(tmp_path / "counted").dataset.counts[0]
    for epoch, before, dense, _ in found:
        done = (epoch + before / rows if epoch else 0) / SETTINGS.epochs
        assert dense == pytest.approx(SETTINGS.lr * (1 + math.cos(math.pi * done)) / 2, rel=1e-12)


def test_with_more_epochs_a_resumed_run_goes_on_with_the_rates_of_a_run_of_that_many(tmp_path):
    with pytest.raises(Stopped):
        trainer(tmp_path).run(Told(20))
    longer = dataclasses.replace(SETTINGS, epochs=6, patience=6)
    resumed = trainer(tmp_path, settings=longer)
    assert resumed.load() == SETTINGS.epochs
    found = rates(resumed, Told())
    assert found == rates(trainer(tmp_path / "whole", settings=longer), Told())[20:]


def test_an_epoch_reports_what_the_optimizer_says_by_field(tmp_path):
    class Asking(Told):
        def epoch(self, epoch):
            optimizer = run.optimizers[0]
            told = zip(optimizer.flip_rate(), optimizer.untouched_rows(), optimizer.confidence_histogram(), strict=True)
            super().epoch((epoch, list(told), optimizer.param_groups[0]["lr"]))

    run, watcher = trainer(tmp_path), Asking()
    result = run.run(watcher)
    assert [epoch.number for epoch, _, _ in watcher.epochs] == [1, 2, 3]
    for epoch, told, rate in watcher.epochs:
        assert list(epoch.tables) == ["user", "item", "tags"]
        for table, (flips, untouched, histogram) in zip(epoch.tables.values(), told, strict=True):
            assert (table.flip_rate, table.untouched_rows) == (flips, untouched)
            assert table.confidences == histogram.tolist()
            assert len(table.confidences) == 2 ** (SETTINGS.bits * SETTINGS.bits_per_value - 1)
        found = [table.flip_rate for table in epoch.tables.values()]
        assert 0 < min(found) < epoch.flip_rate < max(found)
        assert (epoch.lr, epoch.table_lr) == (pytest.approx(rate / 100), rate)
        assert epoch.resident_bytes > 1e7
        assert epoch.samples_per_second == pytest.approx(run.dataset.counts[0] / epoch.seconds)
    # MemorySource's ids are frequent: none of the 16 rows of each table for rare ones is ever used.
    assert result.untouched_rows == 3 * 16
    assert watcher.epochs[-1][0].steps == run.progress.steps


def test_an_epoch_that_was_interrupted_reports_the_flips_of_all_of_it(tmp_path):
    expected = Told()
    trainer(tmp_path / "whole").run(expected)
    found = Told(20)
    with pytest.raises(Stopped):
        trainer(tmp_path / "parts").run(found)
    found.stop_at = None
    trainer(tmp_path / "parts").run(found, resume=True)
    assert [epoch.tables for epoch in found.epochs] == [epoch.tables for epoch in expected.epochs]
    assert [epoch.flip_rate for epoch in found.epochs] == [epoch.flip_rate for epoch in expected.epochs]
    assert [epoch.loss for epoch in found.epochs] == [epoch.loss for epoch in expected.epochs]


def test_the_fp32_twin_reports_an_epoch_without_tables(tmp_path):
    watcher = Told()
    result = trainer(tmp_path, "fp32").run(watcher)
    assert [(epoch.tables, epoch.flip_rate) for epoch in watcher.epochs] == [({}, None)] * 3
    assert result.untouched_rows is None


def test_decay_reaches_the_tables(tmp_path):
    run = trainer(tmp_path, settings=dataclasses.replace(SETTINGS, decay=0.5))
    assert run.optimizers[0].param_groups[0]["decay"] == 0.5


def test_the_comparison_of_states_sees_a_single_bit():
    a = {"x": [torch.tensor([1, 2], dtype=torch.int32)], "seconds": 1.0}
    assert same(a, {"x": [torch.tensor([1, 2], dtype=torch.int32)], "seconds": 2.0})
    assert not same(a, {"x": [torch.tensor([1, 3], dtype=torch.int32)], "seconds": 1.0})
    assert not same({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})


@pytest.mark.parametrize("kind", ["packed", "fp32"])
def test_training_learns_what_decides_the_label(tmp_path, kind):
    settings = dataclasses.replace(SETTINGS, epochs=8, patience=8, dropout=0.0, lr=0.01)
    result = trainer(tmp_path, kind, settings, MemorySource(rows=3000)).run(Told())
    # 300 test rows: an untrained model scores 0.5 with a standard deviation of 0.033.
    assert result.test.auc > 0.7
    assert result.table_bytes == (20 + 30 + 8 + 3 * 16) * (4 if kind == "packed" else 128)


def test_the_best_epoch_is_tested_not_the_last(tmp_path):
    watcher = Told()
    # Constant rates: the later epochs of so few rows are then the worse ones.
    settings = dataclasses.replace(SETTINGS, epochs=8, patience=8, lr=0.02, schedule="constant")
    run = trainer(tmp_path, settings=settings)
    result = run.run(watcher)
    aucs = [epoch.valid.auc for epoch in watcher.epochs]
    assert result.best_epoch == int(np.argmax(aucs)) < len(aucs) - 1
    assert result.valid.auc == max(aucs)
    assert run.score(1).auc == max(aucs)


def test_training_ends_when_patience_does(tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=50, patience=2, lr=0.02)
    result = trainer(tmp_path, settings=settings).run(Told())
    assert result.epochs == result.best_epoch + 1 + 2 < 50


def test_a_finished_run_resumes_to_the_same_result(tmp_path):
    first = trainer(tmp_path).run(Told())
    watcher = Told()
    again = trainer(tmp_path).run(watcher, resume=True)
    assert watcher.steps == 0
    assert again.test == first.test


def test_more_epochs_may_be_added(tmp_path):
    trainer(tmp_path).run(Told())
    result = trainer(tmp_path, settings=dataclasses.replace(SETTINGS, epochs=4, patience=9)).run(Told(), resume=True)
    assert result.epochs == 4


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer(tmp_path).run(Told())
    with pytest.raises(CheckpointError, match="made with batch_size=32, this run has batch_size=64"):
        trainer(tmp_path, settings=dataclasses.replace(SETTINGS, batch_size=64)).run(Told(), resume=True)
    with pytest.raises(CheckpointError, match="the checkpoint was made on other data"):
        trainer(tmp_path, source=MemorySource(seed=3)).run(Told(), resume=True)
    with pytest.raises(CheckpointError, match="the checkpoint is of a packed model"):
        trainer(tmp_path, kind="fp32").run(Told(), resume=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        trainer(tmp_path / "new").run(Told(), resume=True)


def test_a_new_run_keeps_the_checkpoint_of_an_earlier_one(tmp_path):
    first = trainer(tmp_path)
    assert first.keep_old() is None
    first.save()
    content = first.path.read_bytes()
    kept = trainer(tmp_path).keep_old()
    assert kept.read_bytes() == content
    assert not first.path.exists()


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    run = trainer(tmp_path, kind="fp32")
    run.model.perceptron[-1].bias.data.fill_(float("nan"))
    with pytest.raises(ArgumentError, match=r"the training loss is nan at step 0; it must be finite\. Lower --lr"):
        run.run(Told())


def test_exported_tables_hold_the_trained_words_and_the_ids(tmp_path):
    run = trainer(tmp_path)
    run.run(Told())
    paths = export_tables(run.model, run.dataset, tmp_path / "tables")
    assert [p.name for p in paths] == ["user.safetensors", "item.safetensors", "tags.safetensors"]
    for path, module, ids in zip(paths, run.model.tables, run.dataset.ids, strict=True):
        table = load(path)
        np.testing.assert_array_equal(table.words, module.weight.numpy())
        assert table.scale == module.scale.item()
        listed = path.with_name(path.name.replace(".safetensors", ".ids.jsonl")).read_text().splitlines()
        assert [json.loads(line) for line in listed] == ids.tokens()
        assert table.num_embeddings == len(listed) + table.metadata["hashed_rows"]


def test_an_exported_table_serves_what_the_model_computes(tmp_path):
    run = trainer(tmp_path)
    run.run(Told())
    table = load(export_tables(run.model, run.dataset, tmp_path)[2])
    batch = next(run.dataset.batches(2, 16))
    column = batch.columns[2]
    module = run.model.tables[2]
    with torch.no_grad():
        expected = module(torch.from_numpy(column.indices), torch.from_numpy(column.offsets)).numpy()
    found = table.bag(column.indices, column.offsets, table.metadata["mode"], include_last_offset=True)
    np.testing.assert_array_equal(found, expected)


def test_names_of_fields_cannot_leave_the_folder():
    assert file_name("../../etc/passwd") == "_.._etc_passwd"
    assert file_name("..") == "_"
