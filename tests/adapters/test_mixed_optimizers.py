"""Optimizers of the adapter on bits and floats together, and under what torch does to parameters and rates."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from packedbag.adapters.bitorch_engine import BitFlip, DiodeMix, VoteFlip
from packedbag.core.errors import ArgumentError, DtypeError, StateMismatchError
from packedbag.optim import CounterSGD
from tests.adapters.votes import loss_of, make_model, train
from tests.devices import hosted, seeded, settled
from tests.optim.problems import assert_same, snapshot

MAKERS: dict[str, Callable[..., Any]] = {
    "DiodeMix-4": lambda p, **o: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), state_bits=4, seed=0, **o),
    "DiodeMix-8": lambda p, **o: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), seed=0, **o),
    "DiodeMix-32": lambda p, **o: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), state_bits=32, seed=0, **o),
    "BitFlip": lambda p, **o: BitFlip(p, lr=0.05, float_lr=1e-2, seed=0, **o),
    "VoteFlip": lambda p, **o: VoteFlip(p, float_lr=1e-2, seed=0, **o),
}
every_optimizer = pytest.mark.parametrize("name", MAKERS)


def small_model(seed: int = 1) -> torch.nn.Sequential:
    return make_model(seed, 400, 33)


# Floats ----------------------------------------------------------------------------------------------------------


def documented_steps(
    start: torch.Tensor,
    gradients: list[torch.Tensor],
    rates: list[float],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    correct_bias: bool,
) -> torch.Tensor:
    """Return what a float becomes by the rule that `DiodeMix` documents, in float64."""
    value, mean, square = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient.double()
        square = betas[1] * square + (1 - betas[1]) * gradient.double() ** 2
        size = rate * math.sqrt(1 - betas[1] ** number) / (1 - betas[0] ** number) if correct_bias else rate
        value = value - size * mean / (square.sqrt() + eps)
        value = value - rate * weight_decay * value
    return value


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every_optimizer
def test_floats_follow_the_documented_rule(name: str, weight_decay: float, correct_bias: bool) -> None:
    parameter = torch.nn.Parameter(torch.randn(5, 3, generator=seeded(0)))
    start, gradients = parameter.detach().clone(), [torch.randn(5, 3, generator=seeded(n)) for n in range(8)]
    options = {"eps": 1e-3, "weight_decay": weight_decay, "correct_bias": correct_bias}
    optimizer = MAKERS[name]([parameter], **options)
    group, rates = optimizer.param_groups[0], []
    first = group["lr"]
    for number, gradient in enumerate(gradients):
        factor = 1 / (1 + number)
        group["lr"] = first * factor
        rates.append(1e-2 * factor)  # one scheduler drives bits and floats alike
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = documented_steps(start, gradients, rates, betas=group["betas"], **options)
    assert torch.allclose(parameter.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_averages_of_floats_are_kept_in_the_dtype_that_was_asked_for(dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.randn(50, 3, generator=seeded(0)))
    before = parameter.detach().clone()
    optimizer = DiodeMix([parameter], lr=0.1, betas=(0.9, 0.9), dtype=dtype)
    parameter.grad = torch.randn(50, 3, generator=seeded(1))
    optimizer.step()
    state = optimizer.state[parameter]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == dtype
    assert parameter.dtype == torch.float32
    assert torch.equal((parameter - before).sign(), -parameter.grad.sign())


def test_a_float_of_half_precision_is_trained_with_averages_of_single() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = DiodeMix([parameter], lr=0.25)
    parameter.grad = torch.tensor([1.0, -1.0, 4.0, 0.0], dtype=torch.float16)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.25, 0.25, -0.25, 0.0], abs=1e-3)


def test_floats_without_gradients_and_frozen_ones_stay() -> None:
    one, two = (torch.nn.Parameter(torch.ones(3), requires_grad=wanted) for wanted in (True, False))
    optimizer = DiodeMix([one, two], lr=1.0, weight_decay=0.5)
    optimizer.step()
    assert one.eq(1).all()
    assert two.eq(1).all()
    assert not optimizer.state


@pytest.mark.skipif(hosted(), reason="devices in the host's memory have no sparse tensors")
def test_a_sparse_gradient_is_refused_before_anything_has_changed() -> None:
    model = torch.nn.ModuleDict({"bits": small_model(), "sparse": torch.nn.Embedding(9, 3, sparse=True)})
    optimizer = MAKERS["DiodeMix-8"](model.parameters())
    before = snapshot(model)
    (loss_of(model["bits"], 0) + model["sparse"](torch.tensor([1])).sum()).backward()
    with pytest.raises(ArgumentError, match=r"gradient is torch.sparse_coo of a float parameter of shape \(9, 3\)"):
        optimizer.step()
    assert_same(before, snapshot(model))


def test_a_parameter_that_holds_no_floats_is_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bool), requires_grad=False)
    with pytest.raises(DtypeError, match=r"params has dtype bool; it must be floats"):
        DiodeMix([parameter])
    layer = small_model()[0]
    with pytest.raises(DtypeError, match=r"trained through its anchor: pass model\.parameters\(\)"):
        DiodeMix([layer.weight])


# torch's protocols -----------------------------------------------------------------------------------------------


@every_optimizer
def test_a_resumed_run_equals_an_uninterrupted_one(name: str) -> None:
    results = []
    for stop in (False, True):
        model = small_model()
        optimizer = MAKERS[name](model.parameters())
        train(model, optimizer, 4)
        if stop:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = small_model(9)
            optimizer = MAKERS[name](model.parameters())
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        for number in range(4, 8):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()
        results.append(snapshot(model, optimizer))
    assert_same(*results)


@every_optimizer
def test_model_and_optimizer_are_copied_together(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    train(model, optimizer, 3)
    pairs = [(model, optimizer), copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    results = []
    for each, its_optimizer in pairs:
        train(each, its_optimizer, 3)
        results.append(snapshot(each, its_optimizer))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@every_optimizer
def test_a_copy_without_the_model_is_refused_by_its_step(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    train(model, optimizer, 2)
    for alone in (copy.deepcopy(optimizer), copy.deepcopy(copy.deepcopy(optimizer))):
        with pytest.raises(ArgumentError, match=r"an anchor that was copied without its module.*load the state_dict"):
            alone.step()
        with pytest.raises(ArgumentError, match="an anchor that was copied without its module"):
            alone.load_state_dict(optimizer.state_dict())


@every_optimizer
def test_a_run_with_a_group_that_was_added_later_is_resumed(name: str) -> None:
    results = []
    for stop in (False, True):
        model, later = small_model(), small_model(5)
        optimizer = MAKERS[name](model.parameters())
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": later.parameters(), "lr": 5e-3})
        train(later, optimizer, 2)
        if stop:
            saved = copy.deepcopy((model.state_dict(), later.state_dict(), optimizer.state_dict()))
            model, later = small_model(9), small_model(8)
            optimizer = MAKERS[name](model.parameters())
            optimizer.add_param_group({"params": later.parameters()})
            for target, state in zip((model, later, optimizer), saved, strict=True):
                target.load_state_dict(state)
        train(later, optimizer, 2)
        train(model, optimizer, 2)
        results.append([snapshot(model), snapshot(later)])
    for uninterrupted, resumed in zip(*results, strict=True):
        assert_same(uninterrupted, resumed)


@every_optimizer
def test_the_state_of_another_kind_of_optimizer_is_refused_and_changes_nothing(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    train(model, optimizer, 2)
    before = snapshot(model, optimizer)
    for other in (torch.optim.AdamW(model.parameters()), CounterSGD([model[0].anchor], lr=0.1)):
        if len(other.param_groups[0]["params"]) < 3:
            other.param_groups[0]["params"] = list(model.parameters())
        with pytest.raises(StateMismatchError, match=r"the loaded state has no option '\w+'"):
            optimizer.load_state_dict(other.state_dict())
        assert_same(before, snapshot(model, optimizer))
    saved = optimizer.state_dict()
    saved["state"] = {number: {k: v for k, v in s.items() if k != "step"} for number, s in saved["state"].items()}
    with pytest.raises(StateMismatchError, match="of a float parameter has no step"):
        optimizer.load_state_dict(saved)
    train(model, optimizer, 1)


def test_a_state_of_other_parameters_is_refused_and_changes_nothing() -> None:
    model, other = small_model(), make_model(1, 400, 34)
    optimizer, its_optimizer = (MAKERS["DiodeMix-8"](m.parameters()) for m in (model, other))
    train(model, optimizer, 2)
    train(other, its_optimizer, 2)
    before = snapshot(model, optimizer)
    saved = its_optimizer.state_dict()
    with pytest.raises(StateMismatchError, match="the loaded state of table 0 has embedding_dim=34"):
        optimizer.load_state_dict(saved)
    saved["state"].pop(0)
    with pytest.raises(
        StateMismatchError, match=r"of a float parameter has exp_avg=float32\(1, 34\); this optimizer has"
    ):
        optimizer.load_state_dict(saved)
    assert_same(before, snapshot(model, optimizer))


@every_optimizer
def test_grad_scaler_changes_nothing_when_all_is_finite_and_skips_a_step_that_overflowed(name: str) -> None:
    results = []
    for scaled in (False, True):
        model = small_model()
        optimizer = MAKERS[name](model.parameters())
        scaler = torch.amp.GradScaler(torch.empty(0).device.type, init_scale=1024.0, enabled=scaled)
        for number in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, number)).backward()
            scaler.step(optimizer)
            scaler.update()
        before = snapshot(model, optimizer)
        results.append(before)
        if scaled:
            optimizer.zero_grad()
            scaler.scale(loss_of(model, 3) * math.inf).backward()
            scaler.step(optimizer)
            assert_same(before, snapshot(model, optimizer))
    assert_same(*results)  # the scale is a power of two


@every_optimizer
def test_clipping_reaches_bits_and_floats(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    loss_of(model, 0).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    settled(optimizer.step, optimizer)
    assert optimizer.param_groups[0]["step"] == optimizer.state[model[1].weight]["step"] == 1


@every_optimizer
def test_hooks_run_once_a_step_and_a_closure_is_called(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> torch.Tensor:
        calls.append("closure")
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert calls == ["before", "closure", "after"]


@every_optimizer
def test_groups_have_options_of_their_own(name: str) -> None:
    model = small_model()
    groups = [
        {"params": [model[0].anchor]},
        {"params": model[1].parameters(), "weight_decay": 0.5, "betas": (0.5, 0.9)},
    ]
    optimizer = MAKERS[name](groups)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    train(model, optimizer, 2)
    optimizer.check()  # a GPU counts its steps itself
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5, 0.0]
    assert {group["step"] for group in optimizer.param_groups} == {2}
    assert optimizer.state[model[1].weight]["step"] == 2


@every_optimizer
def test_zero_grad_drops_bits_and_floats(name: str) -> None:
    model = small_model()
    optimizer = MAKERS[name](model.parameters())
    before = snapshot(model)
    loss_of(model, 0).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert_same(before, snapshot(model))


def test_the_float_rate_of_strategies_follows_their_scheduler() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = BitFlip([parameter], lr=0.5, float_lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    moves = []
    for _ in range(3):
        before = parameter.item()
        parameter.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        moves.append(before - parameter.item())
    assert moves == pytest.approx([0.25, 0.125, 0.0625], rel=1e-3)
