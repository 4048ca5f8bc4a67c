"""VoteFlip: who votes, what a vote counts, and when a weight flips."""

from __future__ import annotations

import pytest
import torch

from packedbag import PackedBagError, PackedEmbedding
from packedbag.optim import BitFlip, CounterSGD, VoteFlip
from packedbag.optim.counter_sgd import BINARY_RECIPES, RECIPES
from tests.optim.problems import loss_of, make_model, train
from tests.optim.test_decay import values


def stepped(gradient, **options):
    """Return the counters (V, D) after a step of a fresh table, and before it."""
    torch.manual_seed(0)
    module = PackedEmbedding(*gradient.shape)
    optimizer = VoteFlip([module.anchor], **{"lr": 1.0, "bits": 4, "seed": 0, **options})
    (module(torch.arange(len(gradient))) * 0).sum().backward()
    optimizer.step()
    before = values(module, optimizer)
    (module(torch.arange(len(gradient))) * gradient).sum().backward()
    optimizer.step()
    return values(module, optimizer), before


def test_only_gradients_above_the_threshold_vote_each_counting_one():
    gradient = torch.tensor([[0.0, 0.5, -0.5, 1.4, 1.6, -1.6, 1000.0, -1000.0]])
    after, before = stepped(gradient, adaptivity=None, threshold=1.5)
    assert (after - before).tolist() == [[0, 0, 0, 0, -1, 1, -1, 1]]


def test_the_threshold_is_in_units_of_the_rows_typical_gradient():
    gradient = torch.ones(2, 100)
    gradient[:, :4] = 3.0  # mean square 1.32
    gradient[1] *= 1e-4
    after, before = stepped(gradient, threshold=1.5)
    # The first step's gradient of 0 halves the statistic: 3 / sqrt(0.66) is above, 1 / sqrt(0.66) below 1.5.
    assert (before - after).tolist() == [[1] * 4 + [0] * 96] * 2


def test_lr_is_the_chance_that_a_vote_counts():
    after, before = stepped(torch.ones(300, 64), lr=0.3, adaptivity=None, threshold=0.5)
    counted = (before - after).float()
    assert set(counted.unique().tolist()) == {0.0, 1.0}
    assert counted.mean().item() == pytest.approx(0.3, abs=0.01)


def test_a_weight_flips_when_votes_have_used_up_its_confidence():
    module = PackedEmbedding(1, 32)
    with torch.no_grad():
        module.words.fill_(-1)  # all +1
    optimizer = VoteFlip([module.anchor], lr=1.0, bits=3, adaptivity=None, threshold=0.5, seed=0)

    def vote(sign):
        (module(torch.tensor([0])) * sign).sum().backward()
        optimizer.step()
        return int(values(module, optimizer)[0, 0])

    assert [vote(-1) for _ in range(4)] == [1, 2, 3, 3]  # it saturates
    assert [vote(1) for _ in range(6)] == [2, 1, 0, -1, -2, -3]
    assert not module.to_bool().any()


@torch.no_grad()
def total_loss(model):
    """Return the loss of 20 batches."""
    return sum(loss_of(model, number).item() for number in range(20))


def test_votes_learn_a_small_problem():
    model = make_model()
    packed = VoteFlip([model["item"].anchor, model["history"].anchor], lr=0.5, bits=4, threshold=1.0, seed=0)
    dense = torch.optim.Adam(model["top"].parameters(), lr=0.01)
    before = total_loss(model)
    for _ in range(30):
        train(model, [packed, dense], range(20))
    frozen = make_model()
    top = torch.optim.Adam(frozen["top"].parameters(), lr=0.01)
    for anchor in (frozen["item"].anchor, frozen["history"].anchor):
        anchor.requires_grad_(False)
    for _ in range(30):
        train(frozen, [top], range(20))
    assert total_loss(model) < 0.8 * before
    assert total_loss(model) < total_loss(frozen)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_size_is_refused(threshold):
    module = PackedEmbedding(10, 8)
    with pytest.raises(PackedBagError, match=r"threshold is .*; it must be a finite number >= 0"):
        VoteFlip([module.anchor], lr=0.1, threshold=threshold)


def test_its_state_is_that_of_counters():
    module, other = PackedEmbedding(64, 64), PackedEmbedding(64, 64)
    votes, counters = VoteFlip([module.anchor], lr=0.1, bits=2), CounterSGD([other.anchor], lr=0.1, bits=2)
    for table, optimizer in ((module, votes), (other, counters)):
        table(torch.arange(9)).sum().backward()
        optimizer.step()
    shapes = [{k: v.shape for k, v in o.state[m.anchor].items() if isinstance(v, torch.Tensor)}
              for m, o in ((module, votes), (other, counters))]  # fmt: skip
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", [CounterSGD, VoteFlip])
def test_an_option_that_does_not_exist_is_refused(kind):
    module = PackedEmbedding(10, 8)
    with pytest.raises(TypeError, match="decays"):
        kind([module.anchor], lr=0.1, decays=0.1)


@pytest.mark.parametrize("code", ["thermometer", "binary"])
@pytest.mark.parametrize(("kind", "options"), [(BitFlip, {}), (VoteFlip, {"bits": 2})], ids=["BitFlip", "VoteFlip"])
def test_rates_of_countersgd_are_not_those_of_flips(kind, options, code):
    module = PackedEmbedding(4, 32, bits_per_value=4, code=code)
    counted = CounterSGD([module.anchor], bits=2).param_groups[0]
    assert {"lr": counted["lr"], "decay": counted["decay"]} == (
        RECIPES[2] if code == "thermometer" else BINARY_RECIPES[8]
    )
    for missing in ("lr", "decay"):
        with pytest.raises(PackedBagError, match=f"{missing} is None; it must be a finite number >= 0"):
            kind([module.anchor], **{"lr": 0.1, "decay": 0.0, **options, missing: None})
    assert kind([module.anchor], 0.1, **options).param_groups[0]["spacing"] == 0.0
