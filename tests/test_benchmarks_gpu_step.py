"""The GPU benchmark's training steps: every contender sums the same gradients, and the oracle sees a wrong row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import packedbag
from benchmarks.gpu import capacity, oracle, step
from benchmarks.gpu.clock import HostClock
from benchmarks.gpu.forward import Options
from benchmarks.gpu.turns import CALLED
from benchmarks.shapes import Shape
from packedbag.optim import CounterSGD

CPU = torch.device("cpu")
TINY = Shape(rows=300, dim=64, bags=12, length=5)
OPTIONS = Options(HostClock(CPU), seconds=0.0, sets=3)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def quiet(text: str) -> None:
    """Say nothing."""


def test_every_step_sums_the_same_gradients() -> None:
    found = step.measure(replace(TINY, zipf=True), OPTIONS, quiet)
    assert found["failed"] == {}
    assert list(found[CALLED]) == list(step.contenders())
    assert all(value > 0 for value in found["phases"].values())


def test_a_step_with_another_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = step.TorchStep.first
    monkeypatch.setattr(step.TorchStep, "first", lambda self, *given: first(self, *given) * 1.01)
    found = step.measure(TINY, OPTIONS, quiet)
    assert set(found["failed"]) == {step.SPARSE, step.DENSE}
    assert all("summed other gradients" in why for why in found["failed"].values())


@pytest.mark.parametrize("what", ["words", "planes", "row_state"])
@pytest.mark.parametrize("row", [0, 299])
def test_a_row_that_is_not_the_oracles_is_seen(monkeypatch: pytest.MonkeyPatch, what: str, row: int) -> None:
    update = CounterSGD.step

    def spoil(self: CounterSGD, closure: Any = None) -> None:
        update(self)
        (state,) = self.state.values()
        values = module.words if what == "words" else state[what]
        values[row] ^= 1 << 20

    module = packedbag.PackedEmbeddingBag(300, 64)
    optimizer = CounterSGD([module.anchor], lr=0.05, bits=4, seed=0)
    indices, grad = torch.randint(300, (12, 5)), torch.randn(12, 64)
    indices[0, 0], indices[-1, -1] = 0, 299
    assert oracle.check_step("it", "here", module, optimizer, indices, grad) > 50
    monkeypatch.setattr(CounterSGD, "step", spoil)
    with pytest.raises(oracle.WrongStepError, match=r"1 of \d+ rows are not"):
        oracle.check_step("it", "here", module, optimizer, indices, grad)


def test_a_window_has_the_rows_of_a_longer_array() -> None:
    window = oracle.Window(np.array([3, 70, 5_000_000_000]), np.arange(12, dtype=np.int32).reshape(3, 2, 2))
    window[np.array([70]), :, 1] = -1
    np.testing.assert_array_equal(window[np.array([5_000_000_000, 70])], [[[8, 9], [10, 11]], [[4, -1], [6, -1]]])


def test_three_billion_rows_fit_into_141_gigabytes() -> None:
    assert capacity.row_bytes() == 36
    assert capacity.most_rows(141e9) == 3_750_000_000
    assert 3e9 * capacity.row_bytes() == 108e9
    indices = capacity.batch(3_750_000_000, 40, CPU, seed=0)
    assert (int(indices.min()), int(indices.max())) == (0, 3_750_000_000 - 1)
