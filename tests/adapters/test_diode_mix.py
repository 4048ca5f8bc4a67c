"""`DiodeMix`, `BitFlip` and `VoteFlip` of the adapter: what they do with bits, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packedbag import PackedEmbedding, optim
from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag, BinaryEmbeddingCuda, BitFlip, DiodeMix, VoteFlip
from packedbag.core.errors import ArgumentError, GradientError
from tests.adapters.votes import accuracy, make_model, train
from tests.devices import hosted, seeded, settled

V, D = 30, 40
STATES = [4, 8, 32]


def layer_of(rows: int = V, dim: int = D, seed: int = 0, **options: Any) -> BinaryEmbeddingBag:
    return BinaryEmbeddingBag(num_embeddings=rows, embedding_dim=dim, generator=seeded(seed), **options)


def push(layer: BinaryEmbeddingBag, row: int, gradient: torch.Tensor) -> None:
    """Let ``row`` have this gradient, (D,)."""
    layer(torch.tensor([[row]])).backward(gradient.unsqueeze(0))


# It learns -------------------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "DiodeMix-4": lambda p: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), state_bits=4, seed=0),
    "DiodeMix-8": lambda p: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), seed=0),
    "DiodeMix-32": lambda p: DiodeMix(p, lr=1e-2, betas=(0.9, 0.99), state_bits=32, seed=0),
    "BitFlip": lambda p: BitFlip(p, lr=0.05, float_lr=1e-2, seed=0),
    "VoteFlip": lambda p: VoteFlip(p, float_lr=1e-2, seed=0),
}


#: What is learned in hundreds of steps does not depend on where; that each gives the same bits, others see.
many_steps = pytest.mark.skipif(hosted(), reason="devices in the host's memory take a minute for so many steps")


@many_steps
@pytest.mark.parametrize("name", MAKERS)
def test_a_bag_classifier_that_a_majority_solves_is_learned_from_all_parameters_of_the_model(name: str) -> None:
    model = make_model()
    optimizer = MAKERS[name](model.parameters())
    train(model, optimizer, scheduler=torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300))
    assert accuracy(model) >= 0.95


def test_the_same_classifier_learns_little_while_its_bits_stay() -> None:
    model = make_model()
    model[0].anchor.requires_grad_(False)
    train(model, torch.optim.Adam(model[1].parameters(), lr=1e-2))
    assert accuracy(model) < 0.75


# The rule --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_float_averages_follow_the_documented_rule(data: st.DataObject) -> None:
    dim, beta = data.draw(st.sampled_from([1, 31, 32, 33, 70])), data.draw(st.sampled_from([0.0, 0.5, 0.99]))
    layer = layer_of(4, dim, data.draw(st.integers(0, 9)))
    optimizer = DiodeMix(layer.parameters(), lr=0.5, betas=(0.9, beta), state_bits=32, seed=0)
    averages, bits = torch.zeros(4, dim), layer.weight.to_bool()
    for step in range(data.draw(st.integers(1, 6))):
        rate = data.draw(st.sampled_from([0.5, 0.125, 0.0]))
        optimizer.param_groups[0]["lr"] = rate
        row = data.draw(st.integers(0, 3))
        gradient = torch.randint(-1, 2, (dim,), generator=seeded(step)).float() * 3
        push(layer, row, gradient)
        optimizer.step()
        averages[row] += (gradient.sign() * rate - averages[row]) * torch.tensor(1 - beta, dtype=torch.float32)
        bits[row] = torch.where(averages[row] == 0, bits[row], averages[row] < 0)
        kept = optimizer.state[layer.anchor]["averages"]
        assert torch.equal(kept[:, :dim], averages)
        assert kept[:, dim:].eq(0).all()
        assert torch.equal(layer.weight.to_bool(), bits)


@many_steps
@pytest.mark.parametrize("bits", [4, 8])
def test_counters_lie_where_float_averages_do(bits: int) -> None:
    """Both are averages of the same votes: the counter's, rounded stochastically, in units of lr / 2^(k-1)."""
    layer, rows = layer_of(2000, 64), torch.arange(2000)
    optimizer = DiodeMix(layer.parameters(), lr=1e-3, betas=(0.9, 0.96), state_bits=bits, seed=0)
    average = 0.0
    for step in range(60):
        vote = 1.0 if step % 4 else -1.0
        average += (vote - average) * 0.04
        layer(rows.unsqueeze(1)).mul(vote).sum().backward()
        optimizer.step()
    half = 2 ** (bits - 1)
    (confidences,) = optimizer.confidence_histogram()
    signs = layer.weight.to_bool()
    assert average > 0.3
    assert signs.float().mean() < 0.1  # a positive gradient clears bits
    values = torch.arange(half, device=confidences.device) + 0.5
    mean = float((confidences * values).sum() / confidences.sum()) / half
    assert mean == pytest.approx(average, abs=0.06)


def test_counters_of_a_lower_rate_take_smaller_votes_and_the_first_rate_is_kept_in_the_state() -> None:
    flips = {}
    for factor in (1.0, 0.1, 0.0):
        layer = layer_of(500, 64)
        before = layer.weight.to_bool()
        optimizer = DiodeMix(layer.parameters(), lr=0.1, betas=(0.9, 0.999), seed=0)
        optimizer.param_groups[0]["lr"] *= factor
        layer(torch.arange(500).unsqueeze(1)).sum().backward()
        optimizer.step()
        flips[factor] = int((layer.weight.to_bool() != before).sum())
        assert optimizer.state_dict()["param_groups"][0]["first_lr"] == 0.1
    # A vote of 128 / 1000 flips every eighth of the 16,000 set bits; a tenth of it, every eightieth.
    assert flips[1.0] == pytest.approx(2000, rel=0.15)
    assert flips[0.1] == pytest.approx(200, rel=0.3)
    assert flips[0.0] == 0


def test_a_rate_that_starts_at_zero_takes_the_first_other_one_for_its_measure() -> None:
    layer = layer_of()
    optimizer = DiodeMix(layer.parameters(), lr=0.0, seed=0)
    before = layer.weight.to_bool()
    push(layer, 3, torch.ones(D))
    optimizer.step()
    assert torch.equal(layer.weight.to_bool(), before)
    optimizer.param_groups[0]["lr"] = 0.25
    push(layer, 3, torch.ones(D))
    optimizer.step()
    assert optimizer.param_groups[0]["first_lr"] == 0.25


@pytest.mark.parametrize("bits", STATES)
def test_state_takes_the_bits_that_were_asked_for(bits: int) -> None:
    layer = layer_of(1000, 64)
    optimizer = DiodeMix(layer.parameters(), state_bits=bits, seed=0)
    push(layer, 1, torch.ones(64))
    optimizer.step()
    tensors = {k: v for k, v in optimizer.state[layer.anchor].items() if isinstance(v, torch.Tensor)}
    del tensors["totals"]
    beside_the_table = bits - 1 if bits < 32 else 32
    assert sum(value.nbytes for value in tensors.values()) == 1000 * 64 // 8 * beside_the_table


@pytest.mark.parametrize("bits", STATES)
def test_a_row_scale_is_trained_beside_the_bits(bits: int) -> None:
    layer = BinaryEmbeddingCuda(num_embeddings=V, embedding_dim=D)
    before = layer.scale.clone()
    optimizer = DiodeMix(layer.parameters(), lr=0.1, state_bits=bits, seed=0)
    found = layer(torch.tensor([1, 2]))
    found.backward(found.detach())  # along the row: a slope of D * scale
    optimizer.step()
    assert (layer.scale != before).nonzero().reshape(-1).tolist() == [1, 2]


@pytest.mark.parametrize("bits", STATES)
def test_other_packed_modules_are_trained_as_well(bits: int) -> None:
    module = PackedEmbedding(V, D)
    optimizer = DiodeMix(module.parameters(), lr=1.0, betas=(0.9, 0.5), state_bits=bits, seed=0)
    for _ in range(30):
        module(torch.tensor([4])).sum().backward()
        optimizer.step()
    assert settled(lambda: module(torch.tensor([4])), optimizer).eq(-1).all()


# The original's defects, by their numbers in docs/adapter.md ------------------------------------------------------


@pytest.mark.parametrize("bits", STATES)
def test_defect_5_and_6_the_first_update_follows_the_gradient_and_leaves_what_has_none(bits: int) -> None:
    layer = layer_of(300, 64)
    layer.weight[:] = True
    optimizer = DiodeMix(layer.parameters(), lr=0.1, betas=(0.9, 0.0), state_bits=bits, seed=0)
    gradient = torch.cat([torch.ones(32), -torch.ones(20), torch.zeros(12) if bits == 32 else -torch.ones(12)])
    layer(torch.arange(200).unsqueeze(1)).backward(gradient.expand(200, 64))
    optimizer.step()
    weight = layer.weight.to_bool()
    assert weight[:200, 32:].all()
    assert weight[200:].all()
    assert not weight[:200, :32].any()


@pytest.mark.parametrize("bits", STATES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_defect_7_it_descends(bits: int, sign: float) -> None:
    layer = layer_of()
    optimizer = DiodeMix(layer.parameters(), lr=0.1, betas=(0.9, 0.9), state_bits=bits, seed=0)
    for _ in range(40):
        (layer(torch.tensor([[5]])) * sign).sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight[5], torch.full((D,), sign < 0))


@pytest.mark.parametrize("bits", STATES)
def test_defect_8_two_backward_passes_are_one_step_of_their_sum(bits: int) -> None:
    one, two = layer_of(), layer_of()
    grads = torch.randn(2, D, generator=seeded(3))
    for layer, pieces in ((one, grads.unsqueeze(1)), (two, grads.unsqueeze(0))):
        optimizer = DiodeMix(layer.parameters(), lr=0.1, betas=(0.9, 0.5), state_bits=bits, seed=0)
        for piece in pieces:
            layer(torch.full((len(piece), 1), 7)).backward(piece)
        optimizer.step()
    assert torch.equal(one.weight, two.weight)


# Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_bits": 16}, "state_bits is 16; it must be 32, 8 or 4"),
        ({"lr": -1.0}, r"lr is -1\.0; it must be a finite number >= 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a finite number >= 0"),
        ({"eps": None}, "eps is None; it must be a finite number >= 0"),
        ({"state_bits": 8.0}, r"state_bits is 8\.0; it must be 32, 8 or 4"),
        ({"betas": ("a", 0.9)}, r"betas is \('a', 0\.9\)"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\); it must be two numbers, each >= 0 and below 1"),
        ({"betas": 0.9}, r"betas is 0\.9"),
        ({"eps": -1e-6}, "eps is -1e-06"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8; it must be a floating dtype"),
        ({"scale_lr": -1.0}, r"scale_lr is -1\.0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    layer = layer_of()
    with pytest.raises(ArgumentError, match=message):
        DiodeMix(layer.parameters(), **options)
    DiodeMix(layer.parameters())  # nothing stays of the refused one


@pytest.mark.parametrize("make", [BitFlip, VoteFlip])
def test_a_float_rate_that_makes_no_sense_is_refused(make: Any) -> None:
    layer = layer_of()
    with pytest.raises(ArgumentError, match=r"float_lr is -1\.0; it must be a finite number >= 0"):
        make(layer.parameters(), float_lr=-1.0)


def test_state_bits_cannot_change_once_there_is_state() -> None:
    layer = layer_of()
    optimizer = DiodeMix(layer.parameters(), state_bits=8, seed=0)
    push(layer, 1, torch.ones(D))
    optimizer.step()
    optimizer.param_groups[0]["state_bits"] = 4
    push(layer, 1, torch.ones(D))
    with pytest.raises(ArgumentError, match="state_bits is 4; it must be 8, with which this table's state was made"):
        optimizer.step()


@pytest.mark.parametrize("bits", STATES)
def test_a_gradient_that_is_not_finite_changes_no_bit_and_no_float(bits: int) -> None:
    model = torch.nn.Sequential(layer_of(), torch.nn.Linear(D, 1))
    optimizer = DiodeMix(model.parameters(), lr=0.1, state_bits=bits, seed=0)
    words, weight = model[0].weight.to_bool(), model[1].weight.detach().clone()
    loss = model(torch.tensor([[1, 2]])).sum()
    (loss * math.inf).backward()
    with pytest.raises(GradientError):
        settled(optimizer.step, optimizer)
    assert torch.equal(model[0].weight.to_bool(), words)
    if torch.empty(0).device.type == "cpu":  # elsewhere floats have moved by then, as under any optimizer
        assert torch.equal(model[1].weight, weight)


def test_the_adapters_strategies_are_those_of_optim() -> None:
    assert issubclass(BitFlip, optim.BitFlip)
    assert issubclass(VoteFlip, optim.VoteFlip)
