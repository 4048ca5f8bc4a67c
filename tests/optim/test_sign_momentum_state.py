"""SignMomentum as a torch optimizer: resuming, options, schedulers, scaling, memory, errors."""

import copy
import io

import pytest
import torch

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.optim import SignMomentum, packed_parameters
from packedbag.report import memory
from tests.optim.problems import D, V, assert_same, loss_of, make_model, snapshot, train

STATE_DTYPES = ("float32", "int8")


@pytest.mark.parametrize("scale", ["table", "row"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(state_dtype, scale):
    whole = make_model(scale=scale)
    optimizer = SignMomentum(packed_parameters(whole), 0.1, state_dtype=state_dtype, seed=4)
    train(whole, [optimizer], range(3))
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict()], file)
    train(whole, [optimizer], range(3, 6))

    file.seek(0)
    states = torch.load(file, weights_only=True)
    resumed = make_model(seed=99, scale=scale)
    other = SignMomentum(packed_parameters(resumed), 0.3, threshold=0.2)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert other.state[resumed["item"].anchor]["averages"].dtype == getattr(torch, state_dtype)
    train(resumed, [other], range(3, 6))
    assert_same(snapshot(whole, optimizer), snapshot(resumed, other))


def test_averages_of_another_kind_are_refused_and_nothing_is_lost():
    model = make_model()
    optimizer = SignMomentum(packed_parameters(model), 0.1, state_dtype="int8", seed=4)
    train(model, [optimizer], range(2))
    before = snapshot(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][1]["averages"] = torch.zeros(V, 96)
    with pytest.raises(
        packedbag.PackedBagError,
        match=r"state of table 1 has averages=float32\(60, 96\); this optimizer has averages=int8\(60, 96\) there",
    ):
        optimizer.load_state_dict(state)
    assert_same(before, snapshot(model, optimizer))


def test_the_kind_of_averages_cannot_change_later():
    model = make_model()
    optimizer = SignMomentum(packed_parameters(model), 0.1)
    train(model, [optimizer], [0])
    optimizer.param_groups[0]["state_dtype"] = "int8"
    with pytest.raises(
        packedbag.PackedBagError, match="state_dtype is 'int8'; it must be 'float32', with which this table's"
    ):
        train(model, [optimizer], [1])


@pytest.mark.parametrize(("name", "value"), [("lr", 1.5), ("threshold", -0.1), ("scale_lr", float("inf"))])
def test_an_option_that_becomes_impossible_is_refused_before_any_bit_changes(name, value):
    model = make_model()
    optimizer = SignMomentum(packed_parameters(model), 0.1, seed=0)
    train(model, [optimizer], [0])
    before = snapshot(model, optimizer)
    optimizer.param_groups[0][name] = value
    with pytest.raises(packedbag.PackedBagError, match=f"{name} is {value}; it must be "):
        train(model, [optimizer], [1])
    assert_same(before, snapshot(model, optimizer))


def test_schedulers_set_the_adaptivity_rate_and_groups_have_their_own_options():
    model = make_model()
    groups = [
        {"params": [model["item"].anchor]},
        {"params": [model["history"].anchor], "threshold": 100.0, "state_dtype": "float32"},
    ]
    optimizer = SignMomentum(groups, 1.0, threshold=0.0, state_dtype="int8", seed=0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch == 0 else 0.0)
    history = model["history"].words.clone()
    item = model["item"].words.clone()
    train(model, [optimizer], [0])
    assert torch.equal(history, model["history"].words)  # no average gets to 100
    assert not torch.equal(item, model["item"].words)
    assert optimizer.state[model["history"].anchor]["averages"].dtype == torch.float32
    assert optimizer.state[model["item"].anchor]["averages"].dtype == torch.int8
    scheduler.step()
    item = model["item"].words.clone()
    train(model, [optimizer], [1])
    assert torch.equal(item, model["item"].words)


def test_grad_scaler_changes_nothing_when_all_is_finite():
    results = []
    for scaled in (False, True):
        model = make_model(scale="row")
        optimizer = SignMomentum(packed_parameters(model), 0.2, state_dtype="int8", seed=0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for number in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, number)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(snapshot(model, optimizer))
    assert_same(*results)


@pytest.mark.parametrize(("state_dtype", "bits"), [("float32", 33), ("int8", 9)])
def test_the_state_is_the_documented_bits_a_weight(state_dtype, bits):
    module = PackedEmbedding(1024, 128)
    optimizer = SignMomentum([module.anchor], 0.1, state_dtype=state_dtype)
    module(torch.arange(10)).sum().backward()
    optimizer.step()
    state = optimizer.state[module.anchor]
    tensors = [v for k, v in state.items() if isinstance(v, torch.Tensor) and k != "totals"]  # 64 bytes a table
    held = sum(t.nbytes for t in tensors) + module.nbytes
    assert held * 8 == 1024 * (128 * bits + 32)


@pytest.mark.host
@pytest.mark.skipif(not memory.CLEAR.exists(), reason="measures the peak through Linux's /proc")
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_step_needs_no_memory_of_the_size_of_the_table(state_dtype):
    module = PackedEmbeddingBag(400_000, 128)  # V x D: 205 MB of floats, 51 MB of bytes
    optimizer = SignMomentum([module.anchor], lr=0.1, state_dtype=state_dtype)
    indices = torch.randint(0, 400_000, (64, 20))
    for _ in range(2):
        module(indices).sum().backward()
        before = memory.resident_bytes()
        assert memory.reset_peak()
        optimizer.step()
    assert memory.peak_bytes() - before < 40 << 20


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0; it must be a finite number >= 0\."),
        ({"lr": 1.25}, r"lr is 1\.25; it must be in 0\.\.1, the part of a new gradient in the average\."),
        (
            {"state_dtype": "int4"},
            r"state_dtype is 'int4'; it must be 'float32' or 'int8'\.",
        ),
        (
            {"threshold": float("nan")},
            r"threshold is nan; it must be >= 0 and below 8192, the largest average with state_dtype='float32'\.",
        ),
        (
            {"threshold": 127 / 128, "state_dtype": "int8"},
            r"threshold is 0\.9921875; it must be >= 0 and below 0\.992188, the largest average with state_dtype=",
        ),
        ({"seed": -1}, r"seed is -1; it must be in 0\.\.2\*\*64 - 1\."),
    ],
)
def test_a_wrong_option_is_named(kwargs, message):
    module = PackedEmbedding(V, D)
    with pytest.raises(packedbag.PackedBagError, match=message):
        SignMomentum([module.anchor], **{"lr": 0.1, **kwargs})
