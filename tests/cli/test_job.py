"""`packedbag.cli.job`: what may go wrong after the training."""

import os

import pytest
import torch

from packedbag.cli.console import guarded
from packedbag.cli.job import Job
from packedbag.cli.sources import DataOptions
from packedbag.recsys.settings import Settings
from packedbag.recsys.trainer import Trainer
from packedbag.report import step_memory
from packedbag.report.step_memory import Cost, MeasurementError


def job(quiet=False):
    names = ("hash_rows", "threads", "json_path", "tensorboard", "data", "output")
    plain = dict.fromkeys(names) | {"dataset": "csv", "unseen_rows": 1, "min_count": 1, "checkpoint_steps": 1}
    flags = dict.fromkeys(("compare", "resume", "memory"), False)
    return Job(**plain, **flags, settings=Settings(), quiet=quiet)


def test_a_measurement_that_fails_costs_a_dash_and_not_the_run(monkeypatch, capsys):
    asked = []

    def fails(kind, batch, embedding_dim, **options):
        asked.append(options)
        raise MeasurementError(kind, "it takes about 99 GB, and 3 GB are free")

    monkeypatch.setattr(step_memory, "measure", fails)
    assert job()._peak("char", []) is None
    assert "a step with char tables could not be measured: it takes about 99 GB" in capsys.readouterr().err
    settings = Settings()
    values = {"bits": settings.bits, "bits_per_value": settings.bits_per_value, "code": settings.code}
    assert asked == [values | {"device": "cpu"}]


def test_a_step_on_a_gpu_is_measured_on_that_gpu(monkeypatch):
    asked = []

    def answers(kind, batch, embedding_dim, *, device, **options):
        asked.append((device, os.environ["CUDA_VISIBLE_DEVICES"]))
        return Cost(0, 0, 0, 77, 0)

    monkeypatch.setattr(step_memory, "measure", answers)
    one = job()
    one._device = torch.device("cuda:1")
    assert one._peak("packed", []) == 77
    assert asked == [("cuda", "1")]


def test_a_gpu_that_is_full_is_an_error_without_a_traceback(monkeypatch, tmp_path, capsys):
    def full(*arguments, **named):
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 MiB"
        )

    path = tmp_path / "f"
    path.write_text("".join(f"{row % 2} {row % 7}:1\n" for row in range(400)))
    monkeypatch.setattr(Trainer, "run", full)
    one = job(quiet=True)
    one.dataset, one.output, one.data = "libfm", tmp_path / "o", DataOptions(path, "random", 0, *[None] * 6)
    with pytest.raises(SystemExit) as ended:
        guarded(one.run)
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: not enough memory for these tables, layers or batches (cpu: CUDA out of memory. Tried to allocate "
        "20.00 MiB). Make them smaller.\n"
    )
