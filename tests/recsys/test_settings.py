"""`packedbag.recsys.settings`."""

import dataclasses

import pytest

from packedbag.core.errors import ArgumentError, CheckpointError
from packedbag.recsys.settings import Settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0; it must be in 1"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2: batch norm needs two rows"),
        ({"hidden": (8, 0)}, "hidden is 0; it must be at least 1"),
        ({"hidden": (2**40,)}, "hidden is 1099511627776; it must be at most 2147483647"),
        ({"lr": float("nan")}, "lr is nan; it must be a finite number >= 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be a finite number >= 0"),
        ({"bits": 8}, "bits is 8; it must be at most 2 for a table of 4 bits a value"),
        ({"packed_lr": float("inf")}, "packed_lr is inf; it must be a finite number >= 0"),
        ({"fp32_lr": float("nan")}, "fp32_lr is nan; it must be a finite number >= 0"),
        ({"decay": -0.1}, "decay is -0.1; it must be a finite number >= 0"),
        ({"schedule": "step"}, "schedule is 'step'; it must be 'cosine' or 'constant'"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"seed": -1}, "seed is -1; it must be in 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        Settings(**kwargs)


def test_a_resumed_run_may_go_on_for_longer_but_not_otherwise():
    saved = Settings().plain()
    Settings(epochs=99, patience=9).check_same(saved, "p")
    with pytest.raises(CheckpointError, match=r"p: the checkpoint was made with lr=0\.001, this run has lr=0\.5"):
        Settings(lr=0.5).check_same(saved, "p")


def test_every_other_setting_is_compared():
    saved = Settings().plain()
    for name, value in saved.items():
        if name in ("epochs", "patience"):
            continue
        others = {"hidden": (7,), "embedding_dim": 68, "bits_per_value": 2, "schedule": "constant", "weight_decay": 0.1}
        others |= {"code": "thermometer", "bits": 1, "packed_lr": 0.1, "decay": 0.1}
        other = others.get(name) or (value / 2 if isinstance(value, float) else value + 1)
        with pytest.raises(CheckpointError, match=f"made with {name}="):
            dataclasses.replace(Settings(), **{name: other}).check_same(saved, "p")
