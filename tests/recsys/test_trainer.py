"""`packedbag.recsys.trainer`."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.io import safetensors_file
from packedbag.recsys import checkpoint
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.export import export_tables, file_name
from packedbag.recsys.settings import Settings
from packedbag.recsys.trainer import Stopped, Trainer
from tests.recsys.memory_source import MemorySource

SETTINGS = Settings(embedding_dim=32, hidden=(16,), dropout=0.3, batch_size=32, epochs=3, patience=3, packed_lr=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps on a busy machine wait for threads far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watcher:
    """Asks for a stop after ``stop_at`` steps, and keeps what it was told."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.steps = 0
        self.scores = []

    def step(self, progress, rows):
        self.steps += 1

    def epoch(self, progress, valid):
        self.scores.append(valid)

    def stop_requested(self):
        return self.stop_at is not None and self.steps >= self.stop_at


def trainer(folder, kind="packed", settings=SETTINGS, source=None, **kwargs):
    dataset = Dataset(source or MemorySource(), "random", window_rows=200)
    dataset.prepare()
    return Trainer(kind, dataset, settings, folder, **kwargs)


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
    expected = whole.run(Watcher())
    for number, stop in enumerate(stops):
        with pytest.raises(Stopped):
            trainer(tmp_path / "parts", kind).run(Watcher(stop), resume=number > 0)
    parts = trainer(tmp_path / "parts", kind)
    found = parts.run(Watcher(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(parts.path))
    assert same(checkpoint.load(whole.best_path), checkpoint.load(parts.best_path))
    assert found.test == expected.test
    assert sum(stops) < checkpoint.load(whole.path)["progress"]["steps"]


def test_a_run_resumed_from_an_older_checkpoint_ends_the_same(tmp_path):
    # What kill -9 leaves: a checkpoint some steps old, and perhaps a best epoch that is newer than it.
    whole = trainer(tmp_path / "a", checkpoint_steps=10)
    whole.run(Watcher())
    killed = trainer(tmp_path / "b", checkpoint_steps=10)
    real_save = killed.save

    def save():
        real_save()
        if killed.progress.steps == 10:
            killed.save = lambda: None  # the process lives on, but nothing more reaches the disk

    killed.save = save
    killed.run(Watcher())
    assert checkpoint.load(killed.path)["progress"]["steps"] == 10
    resumed = trainer(tmp_path / "b", checkpoint_steps=10)
    resumed.run(Watcher(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(resumed.path))


def test_the_comparison_of_states_sees_a_single_bit():
    a = {"x": [torch.tensor([1, 2], dtype=torch.int32)], "seconds": 1.0}
    assert same(a, {"x": [torch.tensor([1, 2], dtype=torch.int32)], "seconds": 2.0})
    assert not same(a, {"x": [torch.tensor([1, 3], dtype=torch.int32)], "seconds": 1.0})
    assert not same({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})


@pytest.mark.parametrize("kind", ["packed", "fp32"])
def test_training_learns_what_decides_the_label(tmp_path, kind):
    settings = dataclasses.replace(SETTINGS, epochs=8, patience=8, dropout=0.0, lr=0.01)
    result = trainer(tmp_path, kind, settings, MemorySource(rows=3000)).run(Watcher())
    # 300 test rows: an untrained model scores 0.5 with a standard deviation of 0.033.
    assert result.test.auc > 0.7
    assert result.table_bytes == (20 + 30 + 8 + 3 * 16) * (4 if kind == "packed" else 128)


def test_the_best_epoch_is_tested_not_the_last(tmp_path):
    watcher = Watcher()
    run = trainer(tmp_path, settings=dataclasses.replace(SETTINGS, epochs=8, patience=8, lr=0.02))
    result = run.run(watcher)
    aucs = [score.auc for score in watcher.scores]
    assert result.best_epoch == int(np.argmax(aucs)) < len(aucs) - 1
    assert result.valid.auc == max(aucs)
    assert run.score(1).auc == max(aucs)


def test_training_ends_when_patience_does(tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=50, patience=2, lr=0.02)
    result = trainer(tmp_path, settings=settings).run(Watcher())
    assert result.epochs == result.best_epoch + 1 + 2 < 50


def test_a_finished_run_resumes_to_the_same_result(tmp_path):
    first = trainer(tmp_path).run(Watcher())
    watcher = Watcher()
    again = trainer(tmp_path).run(watcher, resume=True)
    assert watcher.steps == 0
    assert again.test == first.test


def test_more_epochs_may_be_added(tmp_path):
    trainer(tmp_path).run(Watcher())
    result = trainer(tmp_path, settings=dataclasses.replace(SETTINGS, epochs=4, patience=9)).run(Watcher(), resume=True)
    assert result.epochs == 4


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer(tmp_path).run(Watcher())
    with pytest.raises(CheckpointError, match="made with batch_size=32, this run has batch_size=64"):
        trainer(tmp_path, settings=dataclasses.replace(SETTINGS, batch_size=64)).run(Watcher(), resume=True)
    with pytest.raises(CheckpointError, match="the checkpoint was made on other data"):
        trainer(tmp_path, source=MemorySource(seed=3)).run(Watcher(), resume=True)
    with pytest.raises(CheckpointError, match="the checkpoint is of a packed model"):
        trainer(tmp_path, kind="fp32").run(Watcher(), resume=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        trainer(tmp_path / "new").run(Watcher(), resume=True)


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
        run.run(Watcher())


def test_exported_tables_hold_the_trained_words_and_the_ids(tmp_path):
    run = trainer(tmp_path)
    run.run(Watcher())
    paths = export_tables(run.model, run.dataset, tmp_path / "tables")
    assert [p.name for p in paths] == ["user.safetensors", "item.safetensors", "tags.safetensors"]
    for path, module, ids in zip(paths, run.model.tables, run.dataset.ids, strict=True):
        table = safetensors_file.load(path)
        np.testing.assert_array_equal(table.words, module.weight.numpy())
        assert table.scale == module.scale.item()
        listed = path.with_name(path.name.replace(".safetensors", ".ids.jsonl")).read_text().splitlines()
        assert [json.loads(line) for line in listed] == ids.tokens()
        assert table.num_embeddings == len(listed) + table.metadata["hashed_rows"]


def test_an_exported_table_serves_what_the_model_computes(tmp_path):
    run = trainer(tmp_path)
    run.run(Watcher())
    table = safetensors_file.load(export_tables(run.model, run.dataset, tmp_path)[2])
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
