"""`AccumulatedSteps`: when it steps, at which rate, on which gradients."""

import pytest
import torch

from packedbag import PackedBagError, PackedEmbeddingBag
from packedbag.optim import AccumulatedSteps, BitFlip, CounterSGD
from tests.devices import settled

V, D = 50, 64


def make(lr=0.2, seed=0, **options):
    torch.manual_seed(seed)
    module = PackedEmbeddingBag(V, D)
    return module, CounterSGD([module.anchor], lr=lr, bits=4, seed=1, **options)


def backward(module, number):
    indices = torch.arange(6).view(2, 3) + number
    (module(indices) * torch.linspace(-1, 1, D)).sum().backward()


@pytest.mark.parametrize(
    ("factor", "batches"), [(1.0, 2), (0.5, 3), (0.25, 4), (0.05, 9), (0.02, 14), (1e-3, 16), (0.0, 16), (4.0, 1)]
)
def test_the_lower_the_rate_the_more_batches(factor, batches):
    module, optimizer = make()
    steps = AccumulatedSteps(optimizer)
    optimizer.param_groups[0]["lr"] = 0.2 * factor
    assert steps.batches == batches
    found = []
    for number in range(2 * batches):
        steps.zero_grad()
        backward(module, number)
        found.append(steps.step())
    assert found == ([False] * (batches - 1) + [True]) * 2


def test_a_step_is_that_of_the_sum_at_the_root_of_the_rate():
    (module, optimizer), (twin, plain) = make(), make()
    steps = AccumulatedSteps(optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    for number in range(4):
        steps.zero_grad()
        backward(module, number)
        backward(twin, number)
        steps.step()
    plain.param_groups[0]["lr"] = 0.1
    plain.step()
    assert torch.equal(module.words, twin.words)
    assert torch.equal(optimizer.state[module.anchor]["planes"], plain.state[twin.anchor]["planes"])
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.state_dict()["param_groups"][0]["step"] == 1


def test_flush_takes_what_waits_and_nothing_twice():
    module, optimizer = make()
    steps = AccumulatedSteps(optimizer, first=5)
    assert not steps.flush()
    backward(module, 0)
    steps.step()
    assert steps.flush()
    assert not steps.flush()
    assert optimizer.state_dict()["param_groups"][0]["step"] == 1
    assert steps.waiting == 0


def test_a_step_that_is_refused_leaves_the_rate_as_it_was():
    module, optimizer = make()
    steps = AccumulatedSteps(optimizer, first=1, most=1)
    optimizer.param_groups[0]["lr"] = 0.05
    (module(torch.arange(4).view(1, 4)) * float("nan")).sum().backward()
    with pytest.raises(PackedBagError, match="NaN"):
        settled(steps.step, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_one_batch_at_a_constant_rate_is_the_optimizer_itself():
    (module, optimizer), (twin, plain) = make(decay=0.1), make(decay=0.1)
    steps = AccumulatedSteps(optimizer, first=1)
    for number in range(5):
        for each, on in ((module, steps), (twin, plain)):
            on.zero_grad()
            backward(each, number)
            on.step()
    assert torch.equal(module.words, twin.words)


@pytest.mark.parametrize(("options", "name"), [({"first": 0}, "first"), ({"first": 4, "most": 3}, "most")])
def test_what_cannot_be_is_said_by_name(options, name):
    with pytest.raises(PackedBagError, match=name):
        AccumulatedSteps(make()[1], **options)


def test_other_optimizers_are_refused():
    with pytest.raises(PackedBagError, match="packed optimizer"):
        AccumulatedSteps(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


def test_a_first_rate_of_zero_is_one_batch_count():
    module = PackedEmbeddingBag(V, D)
    assert AccumulatedSteps(BitFlip([module.anchor], lr=0.0), first=3).batches == 3
