"""Decay of confidences: how much, for whom, and that it is forgetting without a direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packedbag import PackedBagError, PackedEmbedding
from packedbag.core import totals
from packedbag.optim import BitFlip, CounterSGD, VoteFlip
from tests.optim.problems import assert_same, make_model, make_optimizers, snapshot, train

V, D = 400, 64


def values(module, optimizer):
    """Return the counters (V, D) int64."""
    planes = optimizer.state[module.anchor]["planes"]
    places = torch.arange(32)
    m = sum(((planes[:, :, p, None] >> places & 1) << p for p in range(planes.shape[2])), start=torch.zeros(1)).long()
    m = m.reshape(len(planes), -1)[:, : module.embedding_dim]
    return torch.where(module.to_bool(), m, -1 - m)


def confident(decay, *, adaptivity=None, lr=0.1, kind=CounterSGD, confidence=(1, 1, 0, 1, 0, 1, 1), seed=0):
    """Return a module and an optimizer whose counters stand at 107 and -108 (8 bits)."""
    torch.manual_seed(seed)
    module = PackedEmbedding(V, D)
    optimizer = kind([module.anchor], lr=lr, bits=8, adaptivity=adaptivity, decay=decay, seed=seed)
    step(module, optimizer, 0.0)
    for p, bit in enumerate(confidence):
        optimizer.state[module.anchor]["planes"][:, :, p] = -bit
    return module, optimizer


def step(module, optimizer, gradient, rows=V):
    (module(torch.arange(rows)) * gradient).sum().backward()
    optimizer.step()


def test_without_gradients_a_confidence_shrinks_by_its_share_on_average():
    module, optimizer = confident(decay=0.5)
    before = values(module, optimizer).double() + 0.5
    step(module, optimizer, 0.0)
    after = values(module, optimizer).double() + 0.5
    assert (after / before).mean().item() == pytest.approx(0.95, abs=2e-4)
    assert (after.sign() == before.sign()).all()


def test_without_decay_nothing_shrinks():
    module, optimizer = confident(decay=0.0)
    before = values(module, optimizer)
    step(module, optimizer, 0.0)
    assert torch.equal(before, values(module, optimizer))


def test_at_most_an_eighth_is_lost_at_a_touch():
    module, optimizer = confident(decay=1e6)
    before = values(module, optimizer).double() + 0.5
    step(module, optimizer, 0.0)
    assert ((values(module, optimizer).double() + 0.5) / before).mean().item() == pytest.approx(0.875, abs=1e-3)


def test_a_row_that_occurs_seldom_and_one_with_small_gradients_forget_more_at_a_touch():
    torch.manual_seed(0)
    module = PackedEmbedding(V, D)
    optimizer = CounterSGD([module.anchor], lr=0.001, decay=5.0, seed=0)
    rng = np.random.default_rng(0)
    small, seldom = slice(0, 100), slice(100, 200)
    for number in range(12):
        gradient = torch.tensor(rng.standard_normal((V, D)), dtype=torch.float32)
        gradient[small] *= 0.25
        rows = torch.arange(V)
        if number % 4:
            rows = torch.cat([rows[:100], rows[200:]])
        (module(rows) * gradient[rows]).sum().backward()
        optimizer.step()
    for p, bit in enumerate((1, 1, 0, 1, 0, 1, 1)):
        optimizer.state[module.anchor]["planes"][:, :, p] = -bit
    before = values(module, optimizer).double() + 0.5
    sizes = torch.cat([torch.full((100, 1), 0.25), torch.ones(300, 1)])
    (module(torch.arange(V)) * torch.randn(V, D) * sizes).sum().backward()
    optimizer.step()
    kept = ((values(module, optimizer).double() + 0.5) / before).mean(1).cpu()
    lost_small, lost_seldom, lost_usual = 1 - kept[small].mean(), 1 - kept[seldom].mean(), 1 - kept[200:].mean()
    assert lost_small / lost_usual == pytest.approx(4.0, rel=0.15)  # the inverse of their gradients' size
    assert lost_seldom / lost_usual == pytest.approx(13 / 4, rel=0.15)  # 13 steps, 4 touches


def test_the_typical_statistic_is_of_the_rows_that_steps_updated():
    module = PackedEmbedding(V, D)
    optimizer = CounterSGD([module.anchor], lr=0.01, seed=0)
    for _ in range(3):
        step(module, optimizer, 2.0, rows=7)
    found = optimizer.state[module.anchor]["totals"].cpu().numpy()
    assert totals.typical(found) == 4.0
    assert (found[totals.ROWS], found[totals.FOLDS]) == (21, 2)  # the last step's is folded by the next


@pytest.mark.parametrize("kind", [CounterSGD, VoteFlip])
def test_a_resumed_run_with_decay_equals_an_uninterrupted_one(kind):
    def build(model, seed):
        return kind([model["item"].anchor, model["history"].anchor], lr=0.3, bits=4, decay=0.5, seed=seed)

    whole = make_model()
    optimizer = build(whole, 3)
    train(whole, [optimizer], range(4))
    saved = whole.state_dict(), optimizer.state_dict()
    saved = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in saved[0].items()}, saved[1]]
    resumed = make_model(seed=9)
    other = build(resumed, 0)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(whole, [optimizer], range(4, 7))
    train(resumed, [other], range(4, 7))
    assert_same(snapshot(whole, optimizer), snapshot(resumed, other))


def test_one_bit_can_decay_too_and_then_flips_by_chance_alone():
    torch.manual_seed(0)
    module = PackedEmbedding(V, D)
    optimizer = BitFlip([module.anchor], lr=0.1, adaptivity=None, decay=1.0, seed=0)
    before = module.to_bool()
    step(module, optimizer, 0.0)
    assert (before != module.to_bool()).float().mean().item() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_a_decay_that_is_no_share_is_refused(decay):
    module = PackedEmbedding(10, 8)
    with pytest.raises(PackedBagError, match=r"decay is .*; it must be a finite number >= 0"):
        CounterSGD([module.anchor], lr=0.1, decay=decay)


def test_decay_can_be_scheduled_by_group():
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(1))
    packed.param_groups[0]["decay"] = 0.5
    train(model, [packed], range(1, 2))
    assert packed.state_dict()["param_groups"][0]["decay"] == 0.5


@pytest.mark.parametrize(("bits", "lr", "decay"), [(8, 0.08, 0.25), (4, 0.2, 0.08), (2, 0.3, 0.03)])
def test_rate_and_decay_have_defaults_by_bits(bits, lr, decay):
    first, second = PackedEmbedding(V, D), PackedEmbedding(V, D)
    optimizer = CounterSGD([{"params": [first.anchor]}, {"params": [second.anchor], "bits": bits}])
    assert [optimizer.param_groups[0][name] for name in ("lr", "decay")] == [0.08, 0.25]
    assert [optimizer.param_groups[1][name] for name in ("lr", "decay")] == [lr, decay]


def test_what_is_given_is_not_replaced_by_a_default():
    module = PackedEmbedding(V, D)
    optimizer = CounterSGD([module.anchor], lr=0.0, decay=0.0)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["decay"]) == (0.0, 0.0)
