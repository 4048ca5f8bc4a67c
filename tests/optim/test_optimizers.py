"""CounterSGD and BitFlip as torch optimizers: learning, state, accumulation, scaling, errors."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.backends import available
from packedbag.optim import BitFlip, CounterSGD, packed_parameters
from packedbag.report import memory
from tests.devices import seeded
from tests.optim.problems import D, V, assert_same, batch, make_model, make_optimizers, snapshot, train


@pytest.mark.parametrize(
    "make",
    [
        lambda p: CounterSGD(p, lr=0.05, seed=0),
        lambda p: CounterSGD(p, lr=0.1, bits=3, adaptivity="adagrad", seed=0),
        lambda p: CounterSGD(p, lr=1.0, bits=4, adaptivity=None, seed=0),
        lambda p: BitFlip(p, lr=0.05, seed=0),
    ],
)
def test_a_packed_table_learns_a_rule_that_a_frozen_one_cannot(make):
    """Each of 64 items has a target of D signs; the only parameters are the bits."""
    torch.manual_seed(0)
    module = PackedEmbedding(64, 32, scale="table")
    module.scale.requires_grad_(False)
    target = torch.where(torch.rand(64, 32) > 0.5, 1.0, -1.0)
    optimizer = make(packed_parameters(module))
    before = (module(torch.arange(64)) == target).float().mean().item()
    for _ in range(200):
        optimizer.zero_grad()
        (module(torch.arange(64)) - target).square().sum().backward()
        optimizer.step()
    after = (module(torch.arange(64)) == target).float().mean().item()
    assert before < 0.6
    assert after > 0.97


@pytest.mark.host
@pytest.mark.parametrize("backend", available("cpu"))
@pytest.mark.parametrize("scale", ["table", "row"])
def test_every_backend_trains_the_same_bits(backend, scale, monkeypatch):
    def run(name):
        monkeypatch.setenv("PACKEDBAG_BACKEND", name)
        model = make_model(scale=scale)
        packed = CounterSGD(packed_parameters(model), lr=0.1, bits=5, seed=3)
        for number in range(4):
            packed.zero_grad()
            items, histories, _ = batch(number)
            # The same gradients in: dense layers and weighted sums may differ in the last bit between backends.
            torch.manual_seed(number)
            for name_, indices in (("item", items), ("history", histories)):
                out = model[name_](indices)
                out.backward(torch.randn_like(out))
            packed.step()
        return snapshot(model, packed)

    assert_same(run(backend), run("reference"))


def test_two_runs_with_one_seed_are_identical_whatever_the_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            module = PackedEmbeddingBag(5000, 128)
            optimizer = CounterSGD([module.anchor], lr=0.1, seed=2)
            for step in range(3):
                generator = seeded(step)
                indices = torch.randint(0, 5000, (600, 20), generator=generator)
                out = module(indices)
                out.backward(torch.randn(out.shape, generator=generator))
                optimizer.step()
            results.append(snapshot(module, optimizer))
    finally:
        torch.set_num_threads(before)
    assert_same(*results)


def test_another_seed_trains_other_bits():
    results = []
    for seed in (1, 2):
        model = make_model()
        train(model, make_optimizers(model, seed=seed), range(3))
        results.append(model["item"].words.clone())
    assert not torch.equal(*results)


@pytest.mark.parametrize("scale", ["table", "row"])
@pytest.mark.parametrize("adaptivity", ["ema", "adagrad", None])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(adaptivity, scale):
    whole = make_model(scale=scale)
    optimizers = make_optimizers(whole, adaptivity=adaptivity)
    train(whole, optimizers, range(3))
    file = io.BytesIO()
    torch.save([whole.state_dict(), *(o.state_dict() for o in optimizers)], file)
    train(whole, optimizers, range(3, 6))

    file.seek(0)
    states = torch.load(file, weights_only=True)
    resumed = make_model(seed=99, scale=scale)
    others = make_optimizers(resumed, adaptivity=adaptivity, seed=1234)
    resumed.load_state_dict(states[0])
    for optimizer, state in zip(others, states[1:], strict=True):
        optimizer.load_state_dict(state)
    train(resumed, others, range(3, 6))
    assert_same(snapshot(whole, *optimizers), snapshot(resumed, *others))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_model_copied_with_its_optimizer_trains_on_alike(duplicate):
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(2))
    other, others = duplicate((model, packed))
    train(model, [packed], range(2, 4))
    train(other, [others], range(2, 4))
    assert_same(snapshot(model, packed), snapshot(other, others))


def test_loaded_state_is_a_copy_of_integers():
    model = make_model()
    optimizers = make_optimizers(model)
    train(model, optimizers, range(2))
    state = optimizers[0].state_dict()
    twin = copy.deepcopy(model)
    other = make_optimizers(twin)[0]
    other.load_state_dict(state)
    for number, loaded in enumerate(other.state_dict()["state"].values()):
        assert loaded["planes"].dtype == loaded["row_state"].dtype == torch.int32
        assert loaded["planes"].data_ptr() != state["state"][number]["planes"].data_ptr()
    assert other.param_groups[0]["step"] == 2


def test_state_of_other_tables_is_refused_and_nothing_is_lost():
    model = make_model()
    optimizers = make_optimizers(model)
    train(model, optimizers, range(2))
    state = optimizers[0].state_dict()
    larger, same = PackedEmbedding(V + 1, D), PackedEmbedding(V, D)
    pair = CounterSGD([larger.anchor, same.anchor], lr=0.1)
    with pytest.raises(
        packedbag.PackedBagError,
        match=r"the loaded state of table 0 has num_embeddings=60; this optimizer has num_embeddings=61 there\.",
    ):
        pair.load_state_dict(state)
    assert pair.param_groups[0]["step"] == 0
    single = CounterSGD([same.anchor], lr=0.1)
    with pytest.raises(packedbag.PackedBagError, match=r"the loaded state has 2 tables; this optimizer has 1\."):
        single.load_state_dict(state)
    fresh = make_model()
    bits = CounterSGD(packed_parameters(fresh), lr=0.1, bits=3)
    bits.load_state_dict(state)
    assert bits.param_groups[0]["bits"] == 8  # the group's options come with its state, as in torch


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "planes",
            torch.zeros((V, 3, 6), dtype=torch.int32),
            r"planes=int32\(60, 3, 6\); .* planes=int32\(60, 3, 7\) there",
        ),
        (
            "planes",
            torch.zeros((V, 3, 7)),
            r"planes=float32\(60, 3, 7\); this optimizer has planes=int32\(60, 3, 7\) there",
        ),
        ("row_state", None, r"row_state=None; this optimizer has row_state=int32\(60,\) there"),
        ("bits", 4, r"bits=4; this optimizer has bits=8 there"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_is_lost(name, value, message):
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(2))
    before = snapshot(model, packed)
    state = copy.deepcopy(packed.state_dict())
    state["state"][1][name] = value
    state["param_groups"][0]["lr"] = 9.0
    with pytest.raises(packedbag.PackedBagError, match=f"the loaded state of table 1 has {message}"):
        packed.load_state_dict(state)
    assert packed.param_groups[0]["lr"] == 0.05
    assert_same(before, snapshot(model, packed))
    train(model, [packed], [2])


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
def test_a_rate_that_a_scheduler_made_impossible_is_refused_before_any_bit_changes(rate):
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(1))
    before = snapshot(model, packed)
    packed.param_groups[0]["lr"] = rate
    with pytest.raises(packedbag.PackedBagError, match="it must be a finite number >= 0"):
        train(model, [packed], range(1))
    assert_same(before, snapshot(model, packed))


@pytest.mark.parametrize(("name", "value"), [("bits", 4), ("adaptivity", None)])
def test_an_option_that_shapes_the_state_cannot_change_later(name, value):
    model = make_model()
    packed, _ = make_optimizers(model)
    train(model, [packed], range(1))
    packed.param_groups[0][name] = value
    with pytest.raises(packedbag.PackedBagError, match=f"{name} is {value!r}; it must be .*, with which this table's"):
        train(model, [packed], range(1))


def test_a_step_touches_only_the_rows_in_the_batch():
    module = PackedEmbeddingBag(1000, D, scale="row")
    optimizer = CounterSGD([module.anchor], lr=5.0, seed=0)
    touched = torch.tensor([3, 500, 999])
    words = module.words.clone()
    for _ in range(3):
        module(touched[None]).sum().backward()
        optimizer.step()
    others = torch.ones(1000, dtype=torch.bool)
    others[touched] = False
    state = optimizer.state[module.anchor]
    assert torch.equal(words[others], module.words[others])
    assert not torch.equal(words[touched], module.words[touched])
    for name in ("planes", "row_state", "scale_sum"):
        assert not state[name][others].any()
        assert state[name][touched].any()
    assert (state["row_state"][touched] & 0xFF).tolist() == [3, 3, 3]


def test_padding_and_skipped_rows_are_not_trained():
    module = PackedEmbeddingBag(50, D, padding_idx=4, bounds="skip")
    optimizer = CounterSGD([module.anchor], lr=5.0, seed=0)
    words = module.words.clone()
    module(torch.tensor([[4, 50, -1]])).sum().backward()
    optimizer.step()
    assert torch.equal(words, module.words)


def test_a_row_scale_descends():
    torch.manual_seed(0)
    module = PackedEmbedding(8, 32, scale="row")
    optimizer = CounterSGD([module.anchor], lr=0.0, scale_lr=0.1, seed=0)
    target = module(torch.arange(8)).detach() * torch.linspace(0.2, 2.0, 8)[:, None]
    for _ in range(300):
        optimizer.zero_grad()
        (module(torch.arange(8)) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(module.scale, torch.linspace(0.2, 2.0, 8), rtol=0.02, atol=0.02)


def test_tail_bits_stay_zero_in_words_and_planes():
    model = make_model()
    packed, _ = make_optimizers(model, lr=3.0)
    train(model, [packed], range(4))
    tail = ~((1 << (D % 32)) - 1)
    for name in ("item", "history"):
        assert not (model[name].words[:, -1] & tail).any()
        assert not (packed.state[model[name].anchor]["planes"][:, -1] & tail).any()


@pytest.mark.host
@pytest.mark.skipif(not memory.CLEAR.exists(), reason="measures the peak through Linux's /proc")
@pytest.mark.parametrize("name", [name for name in available("cpu") if name != "reference"])
def test_a_step_needs_no_memory_of_the_size_of_the_table(name, monkeypatch):
    monkeypatch.setenv("PACKEDBAG_BACKEND", name)
    module = PackedEmbeddingBag(1_000_000, 128)  # 16 MB of words; V x D floats would be 512 MB
    optimizer = CounterSGD([module.anchor], lr=0.1, bits=2)
    indices = torch.randint(0, 1_000_000, (256, 20))
    for _ in range(2):
        module(indices).sum().backward()
        before = memory.resident_bytes()
        assert memory.reset_peak()
        optimizer.step()
    assert memory.peak_bytes() - before < 100 << 20


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0; it must be a finite number >= 0\."),
        ({"lr": float("nan")}, r"lr is nan; it must be a finite number >= 0\."),
        ({"lr": 0.1, "scale_lr": -2.0}, r"scale_lr is -2\.0; it must be a finite number >= 0\."),
        ({"lr": 0.1, "bits": 1}, r"bits is 1; it must be in 2\.\.8\."),
        ({"lr": 0.1, "bits": 9}, r"bits is 9; it must be in 2\.\.8\."),
        ({"lr": 0.1, "bits": 8.0}, r"bits is 8\.0; it must be in 2\.\.8\."),
        ({"lr": 0.1, "adaptivity": "adam"}, r"adaptivity is 'adam'; it must be 'ema', 'adagrad' or None\."),
        ({"lr": 0.1, "seed": -1}, r"seed is -1; it must be in 0\.\.2\*\*64 - 1\."),
    ],
)
def test_a_wrong_option_is_named(kwargs, message):
    module = PackedEmbedding(V, D)
    with pytest.raises(packedbag.PackedBagError, match=message):
        CounterSGD([module.anchor], **kwargs)
    assert CounterSGD([module.anchor], lr=0.1).param_groups  # nothing stays behind


def test_parameters_of_other_modules_are_refused_with_advice():
    with pytest.raises(
        packedbag.PackedBagError, match=r"params is holding a tensor of shape \(1, 70\) that belongs to no"
    ):
        CounterSGD(torch.nn.Linear(D, 1, bias=False).parameters(), lr=0.1)


def test_bit_flip_keeps_no_state_without_adaptivity():
    module = PackedEmbedding(V, D)
    optimizer = BitFlip([module.anchor], lr=0.5, adaptivity=None, seed=0)
    module(torch.arange(10)).sum().backward()
    before = module.words.clone()
    optimizer.step()
    assert not torch.equal(before, module.words)
    state = optimizer.state[module.anchor]
    assert sum(v.numel() for k, v in state.items() if isinstance(v, torch.Tensor) and k != "totals") == 0


def test_the_state_is_the_documented_bits_a_weight():
    module = PackedEmbedding(1024, 128)
    optimizer = CounterSGD([module.anchor], lr=0.5, bits=4)
    module(torch.arange(10)).sum().backward()
    optimizer.step()
    state = optimizer.state[module.anchor]
    tensors = [v for k, v in state.items() if isinstance(v, torch.Tensor) and k != "totals"]
    held = sum(t.nbytes for t in tensors) + module.nbytes
    assert held * 8 == 1024 * (128 * 4 + 32)
    assert state["totals"].nbytes == 64  # of the whole table


def test_seeds_are_drawn_from_torchs_generator():
    module = PackedEmbedding(V, D)
    seeds = []
    for _ in range(2):
        torch.manual_seed(4)
        seeds.append(CounterSGD([module.anchor], lr=0.1).param_groups[0]["seed"])
    assert seeds[0] == seeds[1]
    big = CounterSGD([module.anchor], lr=0.1, seed=2**64 - 1)
    module(torch.arange(3)).sum().backward()
    big.step()
    assert np.uint64(big.param_groups[0]["seed"]) == np.uint64(2**64 - 1)


def test_a_seed_is_an_integer_of_any_library():
    module = PackedEmbeddingBag(3, 32)
    for seed in (7, np.uint64(7), torch.tensor(7)):
        optimizer = CounterSGD([module.anchor], 0.1, seed=seed)
        assert optimizer.param_groups[0]["seed"] == 7
        assert type(optimizer.param_groups[0]["seed"]) is int
    for seed in (1.5, "7"):
        with pytest.raises(packedbag.PackedBagError, match=f"seed is {seed!r}; it must be an integer"):
            CounterSGD([module.anchor], 0.1, seed=seed)
