"""Training on CUDA gives the bits of training on a CPU: whole modules and optimizers, on the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from packedbag import PackedEmbeddingBag
from packedbag.backends import cupy_steps
from packedbag.optim import BitFlip, CounterSGD, VoteFlip
from tests.cuda_on_cpu import machine

pytestmark = pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")

ROWS = 60


def train(
    dim: int, mode: str, *, bits: int = 8, steps: int = 4, hot: bool = False, hot_from: int = 0, **options: Any
) -> list[torch.Tensor]:
    """Return everything that some steps leave behind: words, state and scale."""
    weighted, fresh = options.pop("weighted", False), torch.Generator().manual_seed(0)
    of_module = {name: options.pop(name) for name in ("scale", "bits_per_value", "code") if name in options}
    padding = options.pop("padding_idx", 3)
    module = PackedEmbeddingBag(ROWS, dim, mode=mode, padding_idx=padding, generator=fresh, **of_module)
    kind = VoteFlip if "threshold" in options else BitFlip if bits == 1 else CounterSGD
    optimizer = kind([module.anchor], lr=0.3, seed=7, **({} if bits == 1 else {"bits": bits}), **options)
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        for _ in range(2):  # two backward calls a step
            # Bags of 40 of few rows make rows hot: more than 64 occurrences.
            rows, first = (4, hot_from) if hot else (ROWS, 0)
            if step % 2:
                indices, offsets = torch.randint(rows, (200,), generator=draw), torch.tensor([0, 3, 3, 77, 140])
            else:
                indices, offsets = torch.randint(rows, (9, 40), generator=draw), None
            indices = indices + first
            weights = torch.randn(indices.shape, generator=draw).requires_grad_() if weighted else None
            out = module(indices.int() if step > 1 else indices, offsets, weights)
            target = torch.randn(out.shape, generator=draw)
            (out * target).sum().backward()  # the same gradients, though weighted sums may differ in the last bit
        optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["step"] == steps
    kept = [module.words, *(v for v in state["state"][0].values() if isinstance(v, torch.Tensor))]
    return [t.clone() for t in ([*kept, module.scale.detach()] if module.scale is not None else kept)]


def assert_same_training(*arguments: Any, **named: Any) -> None:
    expected = train(*arguments, **named)
    for warps in (1, 90, 8192):  # a warp takes the rows that begin in 32 places, in 2 to 8, in 1
        with machine.serving_the_cpu() as backend, pytest.MonkeyPatch.context() as patch:
            patch.setattr(cupy_steps, "ENOUGH_WARPS", warps)
            found = train(*arguments, **named)
            backend.raise_found(torch.device("cpu"), wait=True)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
@pytest.mark.parametrize("dim", [1, 33, 64, 100, 257, 300])
def test_steps_of_every_mode_and_width_equal_the_cpus(mode: str, dim: int) -> None:
    assert_same_training(dim, mode)


@pytest.mark.parametrize("adaptivity", ["ema", "adagrad", None])
@pytest.mark.parametrize("bits", range(1, 9))
def test_steps_of_every_counter_equal_the_cpus(bits: int, adaptivity: str | None) -> None:
    assert_same_training(70, "mean", bits=bits, adaptivity=adaptivity)


@pytest.mark.parametrize("adaptivity", ["ema", "adagrad", None])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_steps_that_decay_equal_the_cpus(bits: int, adaptivity: str | None) -> None:
    assert_same_training(70, "mean", bits=bits, adaptivity=adaptivity, decay=0.1, steps=6)


@pytest.mark.parametrize(("dim", "bits_per_value"), [(72, 2), (72, 8), (320, 4), (64, 32)])
def test_values_of_several_bits_are_trained_as_on_the_cpu(dim: int, bits_per_value: int) -> None:
    assert_same_training(dim, "mean", bits_per_value=bits_per_value, decay=0.3, steps=6)


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize(("dim", "bits_per_value", "bits"), [(72, 2, 4), (320, 4, 2), (1100, 4, 1), (72, 8, 1)])
def test_binary_values_are_trained_as_on_the_cpu(dim: int, bits_per_value: int, bits: int, hot: bool) -> None:
    options = {"bits_per_value": bits_per_value, "bits": bits, "code": "binary", "decay": 0.3}
    assert_same_training(dim, "mean", steps=6, hot=hot, **options)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("bits", [2, 4])
def test_votes_equal_the_cpus(bits: int, decay: float) -> None:
    assert_same_training(70, "mean", bits=bits, threshold=0.5, decay=decay, steps=6)


@pytest.mark.parametrize("mode", ["sum", "mean", "majority", "max"])
def test_hot_rows_equal_the_cpus(mode: str) -> None:
    assert_same_training(100, mode, hot=True)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_hot_rows_that_are_the_last_of_a_step_equal_the_cpus(mode: str) -> None:
    assert_same_training(100, mode, hot=True, hot_from=ROWS - 4, padding_idx=None)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("dim", [31, 64, 300])
def test_row_scales_equal_the_cpus(dim: int, hot: bool, weighted: bool) -> None:
    assert_same_training(dim, "mean", scale="row", hot=hot, weighted=weighted, scale_lr=0.01)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_weighted_bags_train_as_on_the_cpu(mode: str) -> None:
    assert_same_training(100, mode, weighted=True)
