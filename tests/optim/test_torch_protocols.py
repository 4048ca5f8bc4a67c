"""CounterSGD and BitFlip under what torch does to gradients and rates: accumulation, zero_grad, clipping, scaling."""

import pytest
import torch

from packedbag import PackedEmbedding
from packedbag.optim import CounterSGD
from tests.devices import settled
from tests.optim.problems import D, V, assert_same, batch, loss_of, make_model, make_optimizers, snapshot, train


def test_gradient_accumulation_equals_one_call_on_the_joined_batch():
    results = []
    items, _, _ = batch(0)
    grad = torch.randn(len(items), D)
    for accumulate in (True, False):
        torch.manual_seed(0)
        module = PackedEmbedding(V, D)
        optimizer = CounterSGD([module.anchor], lr=0.1, seed=0)
        pieces = [(items[:5], grad[:5]), (items[5:], grad[5:])] if accumulate else [(items, grad)]
        for indices, upstream in pieces:
            module(indices).backward(upstream)
        optimizer.step()
        results.append(snapshot(module, optimizer))
    assert_same(*results)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zero", ["optimizer", "model"])
def test_zero_grad_between_backward_calls_drops_what_came_before(zero, set_to_none):
    results = []
    for wasted in (0, 1, 2):
        model = make_model()
        packed, _ = make_optimizers(model)
        for _ in range(wasted):
            loss_of(model, 7).backward()
            (packed if zero == "optimizer" else model).zero_grad(set_to_none=set_to_none)
        loss_of(model, 0).backward()
        packed.step()
        results.append(snapshot(model, packed))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_zero_grad_before_step_means_no_update_and_no_counted_step():
    model = make_model()
    packed, _ = make_optimizers(model)
    before = snapshot(model)
    loss_of(model, 0).backward()
    model.zero_grad()
    packed.step()
    assert_same(before, snapshot(model))
    assert packed.param_groups[0]["step"] == 0
    packed.step()  # nothing to do is no error


def test_a_step_without_zero_grad_does_not_use_gradients_twice():
    results = []
    for zero in (True, False):
        model = make_model()
        packed, _ = make_optimizers(model)
        for number in range(3):
            if zero:
                packed.zero_grad()
            loss_of(model, number).backward()
            packed.step()
        results.append(snapshot(model, packed))
    assert_same(*results)


def test_clipping_and_scaling_of_gradients_reach_the_packed_rows():
    """With adaptivity=None the update depends on the size of the gradient."""
    results = []
    for factor in (0.25, "loss", "grad"):
        torch.manual_seed(0)
        module = PackedEmbedding(V, D)
        optimizer = CounterSGD([module.anchor], lr=0.3, adaptivity=None, seed=0)
        out = module(batch(0)[0])
        grad = torch.linspace(-4, 4, out.numel()).view_as(out)
        out.backward(grad if factor == "grad" else grad * 0.25)
        if factor == "grad":
            module.anchor.grad.mul_(0.25)
        optimizer.step()
        results.append(snapshot(module, optimizer))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_grad_scaler_changes_nothing_when_all_is_finite():
    results = []
    for scaled in (False, True):
        model = make_model()
        optimizers = make_optimizers(model, adaptivity=None, lr=2.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for number in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.scale(loss_of(model, number)).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        results.append(snapshot(model["item"], optimizers[0]))
    assert_same(*results)


@pytest.mark.parametrize("zero", ["optimizer", "model"])
def test_grad_scaler_skips_a_step_that_overflowed_without_counting_it(zero):
    model = make_model()
    optimizers = make_optimizers(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = snapshot(model)
    scaler.scale(loss_of(model, 0) * 1e6).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert_same(before, snapshot(model))
    assert optimizers[0].param_groups[0]["step"] == 0
    (optimizers[0] if zero == "optimizer" else model).zero_grad()
    optimizers[1].zero_grad()
    loss_of(model, 0).backward()
    assert len(model["item"].sink.parts) == 1
    for optimizer in optimizers:
        optimizer.step()
    fresh = make_model()
    others = make_optimizers(fresh)
    train(fresh, others, [0])
    assert_same(snapshot(model, optimizers[0]), snapshot(fresh, others[0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_before_any_bit_changes(bad):
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(2))
    before = snapshot(model, packed)
    packed.zero_grad()
    items, histories, _ = batch(5)
    model["item"](items).sum().backward()
    (model["history"](histories) * bad).sum().backward()
    with pytest.raises(
        ValueError, match=r"the gradient of table 1 \(PackedEmbeddingBag\(60, 70\)\) is NaN or infinite; (the|1) step"
    ):
        settled(packed.step, packed)
    assert_same(before, snapshot(model, packed))
    train(model, [packed], [2])  # and training goes on
    packed.check()
    assert packed.param_groups[0]["step"] == 3


def test_closures_are_evaluated_with_gradients():
    model = make_model()
    packed, _ = make_optimizers(model)

    def closure():
        packed.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = model["item"].words.clone()
    assert packed.step(closure).item() > 0
    assert not torch.equal(before, model["item"].words)


def test_schedulers_and_parameter_groups_set_rates():
    model = make_model()
    groups = [{"params": [model["item"].anchor]}, {"params": [model["history"].anchor], "lr": 0.0, "bits": 2}]
    packed = CounterSGD(groups, lr=0.1, seed=0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(packed, lambda epoch: 0.5**epoch)
    history = model["history"].words.clone()
    train(model, [packed], [0])
    scheduler.step()
    assert packed.param_groups[0]["lr"] == 0.05
    assert torch.equal(history, model["history"].words)  # lr = 0 moves nothing
    assert packed.state[model["history"].anchor]["planes"].shape == (V, 3, 1)
    assert packed.state[model["item"].anchor]["planes"].shape == (V, 3, 7)


def test_a_group_added_later_shares_seed_and_step():
    model = make_model()
    packed = CounterSGD([model["item"].anchor], lr=0.1, seed=5)
    model["item"](torch.tensor([1])).sum().backward()
    packed.step()
    packed.add_param_group({"params": [model["history"].anchor]})
    assert [(g["seed"], g["step"]) for g in packed.param_groups] == [(5, 1), (5, 1)]
