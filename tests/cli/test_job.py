"""`packedbag.cli.job`: what may go wrong after the training."""

from packedbag.cli.job import Job
from packedbag.recsys.settings import Settings
from packedbag.report import step_memory
from packedbag.report.step_memory import MeasurementError


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
    assert asked == [{"bits": settings.bits, "bits_per_value": settings.bits_per_value, "code": settings.code}]
