"""What a packed optimizer says of its tables: flips, confidences, rows never touched."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from packedbag import PackedEmbedding
from packedbag.optim import BitFlip, CounterSGD, SignMomentum, VoteFlip, packed_parameters
from tests.optim.problems import make_model, train
from tests.optim.test_decay import values

MAKERS = [
    lambda p: CounterSGD(p, lr=0.3, bits=3, decay=0.1, seed=0),
    lambda p: BitFlip(p, lr=0.1, seed=0),
    lambda p: VoteFlip(p, lr=0.5, bits=2, seed=0),
    lambda p: SignMomentum(p, lr=0.1, threshold=0.01, seed=0),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_flip_rate_is_the_share_of_updated_weights_that_changed_their_sign(make):
    torch.manual_seed(0)
    module = PackedEmbedding(50, 70)
    optimizer = make([module.anchor])
    flips, rows = 0, 0
    for number in range(4):
        touched = torch.randperm(50)[: 10 + number]
        before = module.to_bool()
        (module(touched) * torch.randn(len(touched), 70)).sum().backward()
        optimizer.step()
        flips += int((module.to_bool() != before).sum())
        rows += len(touched)
    assert flips > 0
    assert optimizer.flip_rate() == [flips / (rows * 70)]


def test_the_flip_rate_counts_from_the_last_call_and_is_nan_where_nothing_was_updated():
    model = make_model()
    optimizer = CounterSGD(packed_parameters(model), lr=0.3, seed=0)
    assert all(math.isnan(rate) for rate in optimizer.flip_rate())
    train(model, [optimizer], range(2))
    assert all(0 < rate < 1 for rate in optimizer.flip_rate())
    assert all(math.isnan(rate) for rate in optimizer.flip_rate())
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, [optimizer], range(1))
    assert optimizer.flip_rate() == [0.0, 0.0]


def test_rows_never_touched_are_counted_by_table():
    model = make_model()
    optimizer = CounterSGD(packed_parameters(model), lr=0.3, seed=0)
    assert optimizer.untouched_rows() == [60, 60]
    model["item"](torch.tensor([1, 1, 5])).sum().backward()
    optimizer.step()
    assert optimizer.untouched_rows() == [58, 60]


def test_without_row_state_nobody_knows_which_rows_were_touched():
    module = PackedEmbedding(9, 8)
    optimizer = BitFlip([module.anchor], lr=0.1, adaptivity=None)
    module(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert optimizer.untouched_rows() == [None]


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_histogram_counts_every_weight_once(bits, monkeypatch):
    monkeypatch.setattr("packedbag.optim.diagnostics.ELEMENTS", 500)  # in pieces
    torch.manual_seed(0)
    module = PackedEmbedding(40, 70)
    optimizer = CounterSGD([module.anchor], lr=0.4, bits=bits, seed=0)
    for _ in range(3):
        (module(torch.arange(40)) * torch.randn(40, 70)).sum().backward()
        optimizer.step()
    v = values(module, optimizer)
    expected = torch.bincount(torch.where(v >= 0, v, -1 - v).flatten(), minlength=2 ** (bits - 1))
    (found,) = optimizer.confidence_histogram()
    assert torch.equal(found, expected.cpu())


def test_there_is_no_histogram_without_counters():
    module = PackedEmbedding(9, 8)
    assert SignMomentum([module.anchor], lr=0.1).confidence_histogram() == [None]


def test_a_copied_optimizer_counts_on_by_itself():
    module = PackedEmbedding(9, 64)
    optimizer = CounterSGD([module.anchor], lr=0.3, seed=0)
    module(torch.arange(9)).sum().backward()
    optimizer.step()
    first = optimizer.flip_rate()
    clone = copy.deepcopy((module, optimizer))[1]
    assert clone.flip_rate() == first


def test_a_loaded_state_is_where_flips_are_counted_from():
    module = PackedEmbedding(9, 64)
    optimizer = CounterSGD([module.anchor], lr=0.3, seed=0)
    module(torch.arange(9)).sum().backward()
    optimizer.step()
    other = CounterSGD([module.anchor], lr=0.3, seed=0)
    other.load_state_dict(optimizer.state_dict())
    assert math.isnan(other.flip_rate()[0])
