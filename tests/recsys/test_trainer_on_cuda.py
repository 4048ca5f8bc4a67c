"""`packedbag.recsys.trainer` on a GPU; without one, ``pytest --hosted`` gives torch devices that stand for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import packedbag
from packedbag.core.errors import GradientError
from packedbag.io.tables import load
from packedbag.recsys import checkpoint
from packedbag.recsys.dataset import Dataset
from packedbag.recsys.export import export_tables
from packedbag.recsys.settings import Settings
from packedbag.recsys.split import TEST, TRAIN
from packedbag.recsys.trainer import RANDOM_CUDA, Trainer
from packedbag.recsys.watcher import Stopped
from tests.devices import hosted
from tests.recsys.memory_source import MemorySource
from tests.recsys.test_trainer import Told, same

pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here; --hosted makes some")

#: 160 training rows: 5 steps an epoch.
ROWS = 200
SETTINGS = Settings(embedding_dim=32, hidden=(8,), dropout=0.3, batch_size=32, epochs=2, patience=9, packed_lr=0.1)
WITHOUT_DROPOUT = dataclasses.replace(SETTINGS, dropout=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Emulated kernels and small steps wait for threads far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    packedbag.check_cuda()  # nothing is left to raise


@pytest.fixture(autouse=True)
def dropout_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dropout draw from the device's generator, as on a GPU: there is none among the operator's arguments."""
    of_torch = F.dropout

    def dropout(values: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
        if not (values.is_cuda and training and p > 0):
            return of_torch(values, p, training, inplace)
        return values * (torch.rand_like(values) >= p) / (1 - p)

    if hosted():
        monkeypatch.setattr(F, "dropout", dropout)


def trainer(
    folder: Path, kind: str = "packed", settings: Settings = SETTINGS, rows: int = ROWS, **options: Any
) -> Trainer:
    dataset = Dataset(MemorySource(rows), "random", min_count=1, unseen_rows=4)
    dataset.prepare()
    return Trainer(kind, dataset, settings, folder, **({"device": "cuda"} | options))


def bits(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in run.model.state_dict().items()}


def spoil(run: Trainer, step: int) -> None:
    """Let a gradient of that step, counted from 1, be NaN, from the second table's output on."""

    def spoiled(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad and run.progress.steps == step - 1:
            output.register_hook(lambda grad: grad * math.nan)

    run.model.tables[1].register_forward_hook(spoiled)


def test_the_first_bits_are_those_of_a_run_on_the_cpu(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / device, device=device) for device in ("cpu", "cuda")]
    assert {tensor.device.type for tensor in runs[1].model.state_dict().values()} == {"cuda"}
    assert same(bits(runs[0]), bits(runs[1]))


def test_a_run_ends_as_on_the_cpu(tmp_path: Path) -> None:
    watchers = [Told(), Told()]
    runs = [trainer(tmp_path / device, settings=WITHOUT_DROPOUT, device=device) for device in ("cpu", "cuda")]
    results = [run.run(watcher) for run, watcher in zip(runs, watchers, strict=True)]
    state = [value for of_table in runs[1].optimizers[0].state.values() for value in of_table.values()]
    assert {value.device.type for value in state if isinstance(value, torch.Tensor)} == {"cuda"}
    assert results[1].table_bytes == results[0].table_bytes
    assert results[1].state_bytes == results[0].state_bytes
    assert results[1].untouched_rows == results[0].untouched_rows
    if hosted():  # the perceptron is then the CPU's, too
        saved = [checkpoint.load(run.path) for run in runs]
        assert saved[1].pop(RANDOM_CUDA) is not None
        assert same(*saved)
        assert results[1].test == results[0].test
        assert [epoch.tables for epoch in watchers[1].epochs] == [epoch.tables for epoch in watchers[0].epochs]
    else:  # a GPU's perceptron rounds in another order
        losses = [[epoch.loss for epoch in watcher.epochs] for watcher in watchers]
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_it_learns_what_decides_the_label(tmp_path: Path) -> None:
    settings = dataclasses.replace(WITHOUT_DROPOUT, lr=0.02, epochs=8)
    watcher = Told()
    trainer(tmp_path, settings=settings, rows=800).run(watcher)
    losses = [epoch.loss for epoch in watcher.epochs]
    assert losses[-1] < losses[0] - 0.08
    assert all(table.flip_rate > 0 for epoch in watcher.epochs[:-1] for table in epoch.tables.values())


@pytest.mark.parametrize("stops", [[3], [5, 2]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, stops: list[int]) -> None:
    whole = trainer(tmp_path / "whole")
    expected = whole.run(Told())
    for number, stop in enumerate(stops):
        with pytest.raises(Stopped):
            trainer(tmp_path / "parts").run(Told(stop), resume=number > 0)
    parts = trainer(tmp_path / "parts")
    found = parts.run(Told(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(parts.path))
    assert same(checkpoint.load(whole.best_path), checkpoint.load(parts.best_path))
    assert found.test == expected.test


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_another_device(tmp_path: Path, first: str, then: str) -> None:
    whole = trainer(tmp_path / "whole", settings=WITHOUT_DROPOUT, device="cpu")
    expected = whole.run(Told())
    with pytest.raises(Stopped):
        trainer(tmp_path / "parts", settings=WITHOUT_DROPOUT, device=first).run(Told(3))
    parts = trainer(tmp_path / "parts", settings=WITHOUT_DROPOUT, device=then)
    parts.load()
    assert same(bits(parts), checkpoint.load(parts.path)["model"])
    found = parts.run(Told(), resume=True)
    assert {tensor.device.type for tensor in parts.model.state_dict().values()} == {then}
    assert parts.progress.steps == whole.progress.steps
    assert (RANDOM_CUDA in checkpoint.load(parts.path)) == (then == "cuda")
    if hosted():
        assert same(bits(parts), bits(whole))
        assert found.test == expected.test


def test_a_checkpoint_without_the_gpus_generator_loads_and_goes_on_alike_every_time(tmp_path: Path) -> None:
    ends = []
    for name in ("a", "b"):
        with pytest.raises(Stopped):
            trainer(tmp_path / name, device="cpu").run(Told(3))
        resumed = trainer(tmp_path / name)
        resumed.run(Told(), resume=True)
        ends.append(checkpoint.load(resumed.path))
    assert same(*ends)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
# Between two checkpoints, at one, and at the end of an epoch, whose validation must not see what follows.
@pytest.mark.parametrize(("step", "kept"), [(3, 2), (4, 2), (5, 4)])
def test_a_refused_step_ends_the_run_and_the_checkpoint_before_it_is_whole(
    tmp_path: Path, device: str, step: int, kept: int
) -> None:
    run, watcher = trainer(tmp_path / "a", device=device, checkpoint_steps=2), Told()
    spoil(run, step)
    with pytest.raises(GradientError, match=r"table 1 \(PackedEmbeddingBag\(34, 32\)\)"):
        run.run(watcher)
    assert watcher.epochs == []
    assert not run.best_path.exists()
    assert checkpoint.load(run.path)["progress"]["steps"] == kept
    whole = trainer(tmp_path / "b", device=device, checkpoint_steps=2)
    whole.run(Told())
    resumed = trainer(tmp_path / "a", device=device, checkpoint_steps=2)
    resumed.run(Told(), resume=True)
    assert same(checkpoint.load(whole.path), checkpoint.load(resumed.path))


def test_a_stop_does_not_save_what_a_refused_step_left(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    spoil(run, 3)
    with pytest.raises(GradientError):
        run.run(Told(3))
    assert not run.has_checkpoint()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_batch_is_sent_without_waiting_for_the_gpu(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    batches = list(run.dataset.batches(TRAIN, 32))
    run._step(batches[0])  # compiles, and makes the state
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = run.model(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert logits.device.type == "cuda"


def test_exported_tables_serve_what_the_model_computes(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run = trainer(tmp_path)
    run.run(Told())
    paths = export_tables(run.model, run.dataset, tmp_path / "tables")
    batch = next(run.dataset.batches(TEST, 16))
    for path, module, column in zip(paths, run.model.tables, batch.columns, strict=True):
        table = load(path)
        np.testing.assert_array_equal(table.words, module.weight.cpu().numpy())
        with torch.no_grad():
            expected = module(torch.from_numpy(column.indices).cuda(), torch.from_numpy(column.offsets).cuda())
        found = table.bag(column.indices, column.offsets, table.metadata["mode"], include_last_offset=True)
        np.testing.assert_array_equal(found, expected.cpu().numpy())


def test_a_second_gpu_trains_alone(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    run = trainer(tmp_path, device="cuda:1")
    before = torch.cuda.get_rng_state(0)
    with pytest.raises(Stopped):
        run.run(Told(3))
    resumed = trainer(tmp_path, device="cuda:1")
    resumed.run(Told(), resume=True)
    assert {str(tensor.device) for tensor in resumed.model.state_dict().values()} == {"cuda:1"}
    assert same(torch.cuda.get_rng_state(0), before)
    whole = trainer(tmp_path / "whole", device="cuda:1")
    whole.run(Told())
    assert same(checkpoint.load(whole.path), checkpoint.load(resumed.path))


def test_the_fp32_twin_trains_and_goes_on(tmp_path: Path) -> None:
    if hosted():
        pytest.skip("devices in the host's memory have no sparse gradients")
    whole = trainer(tmp_path / "whole", "fp32")
    expected = whole.run(Told())
    with pytest.raises(Stopped):
        trainer(tmp_path / "parts", "fp32").run(Told(3))
    parts = trainer(tmp_path / "parts", "fp32")
    found = parts.run(Told(), resume=True)
    assert found.test.auc == pytest.approx(expected.test.auc, abs=0.02)
    assert same(bits(whole).keys(), bits(parts).keys())
    assert parts.progress.steps == whole.progress.steps
