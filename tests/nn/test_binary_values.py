"""Values of several bits that are binary numbers: forward, gradients, steps, served tables, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.backends import select
from packedbag.backends.reference import BACKEND as ORACLE
from packedbag.core import totals
from packedbag.core.errors import ArgumentError, StateMismatchError
from packedbag.optim import BitFlip, CounterSGD, SignMomentum, VoteFlip, packed_parameters
from packedbag.optim.counter_sgd import BINARY_RECIPES
from tests.devices import seeded

INDICES = torch.tensor([[0, 3, 3, 9], [7, 8, 9, 1], [2, 2, 2, 2]])


def bag(dim: int = 64, bits: int = 4, **options: Any) -> PackedEmbeddingBag:
    generator = seeded(3)
    return PackedEmbeddingBag(10, dim, bits_per_value=bits, code="binary", generator=generator, **options)


def numbers(module: PackedEmbeddingBag) -> torch.Tensor:
    """Return the values of all rows from their bits, float64."""
    bits = module.to_bool().unflatten(1, (-1, module.bits_per_value)).double()
    places = 2.0 ** torch.arange(module.bits_per_value)
    most = 2**module.bits_per_value - 1
    return (2 * (bits * places).sum(2) - most) / most


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("dim", "bits"), [(64, 4), (100, 4), (32, 2), (40, 8)])
def test_a_bag_is_reduced_over_the_numbers_that_its_rows_are(mode: str, dim: int, bits: int) -> None:
    module = bag(dim, bits, mode=mode)
    expected = numbers(module)[INDICES]
    reduced = expected.sum(1) if mode == "sum" else expected.mean(1)
    out = module(INDICES)
    assert out.shape == (3, dim // bits)
    torch.testing.assert_close(out.double(), reduced, atol=1e-6, rtol=1e-6)


def test_weights_of_samples_and_the_tables_scale_multiply_values() -> None:
    module = bag(mode="sum", scale="table")
    with torch.no_grad():
        module.scale.fill_(0.3)  # type: ignore[union-attr]
    weights = torch.rand(3, 4)
    expected = 0.3 * (numbers(module)[INDICES] * weights.unsqueeze(2)).sum(1)
    torch.testing.assert_close(module(INDICES, None, weights).double(), expected, atol=1e-5, rtol=1e-5)


def test_an_embedding_looks_numbers_up() -> None:
    module = PackedEmbedding(10, 64, bits_per_value=4, code="binary")
    assert module(INDICES).shape == (3, 4, 16)
    torch.testing.assert_close(module(INDICES).double(), numbers(module)[INDICES], atol=1e-6, rtol=1e-6)


def test_served_values_are_the_modules_bit_for_bit() -> None:
    module = bag(100, scale="table", mode="mean")
    with torch.no_grad():
        module.scale.fill_(0.37)  # type: ignore[union-attr]
    served = module.to_table().bag(INDICES.cpu().numpy(), mode="mean")
    np.testing.assert_array_equal(served, module(INDICES).detach().cpu().numpy())


def joined(module: PackedEmbeddingBag, planes: torch.Tensor) -> np.ndarray:
    """Return the counters (V, D / p) that words and planes make."""
    layers = [*planes.unbind(2), module.words]
    bits = np.stack([_bits(layer, module.embedding_dim) for layer in layers], axis=-1)  # (V, D, k)
    p = module.bits_per_value
    digits = bits.reshape(len(bits), -1, p, len(layers)).transpose(0, 1, 3, 2)
    number = digits.reshape(len(bits), digits.shape[1], -1) @ (1 << np.arange(p * len(layers)))
    return number - 2 ** (p * len(layers) - 1)


def _bits(words: torch.Tensor, dim: int) -> np.ndarray:
    columns = np.arange(dim)
    return words.cpu().numpy().view(np.uint32)[:, columns // 32] >> (columns % 32).astype(np.uint32) & 1


@pytest.mark.parametrize(("bits", "k"), [(4, 2), (2, 4), (2, 2)])
def test_a_gradient_moves_the_number_as_a_whole_carries_included(bits: int, k: int) -> None:
    module = bag(64, bits)
    optimizer = CounterSGD(packed_parameters(module), lr=0.3, bits=k, decay=0.0, adaptivity=None, seed=1)
    top = 2 ** (bits * k - 1)
    direction = torch.where(torch.arange(64 // bits) % 2 == 0, 1.0, -1.0)
    before = None
    for _ in range(4):
        optimizer.zero_grad()
        (module(torch.tensor([[5]])) * direction * (2**bits - 1)).sum().backward()  # of a value's lowest bit: +-1
        if before is None:
            before = (module.to_bool()[5].unflatten(0, (-1, bits)).cpu().numpy() @ (1 << np.arange(bits))) * 2 ** (
                bits * (k - 1)
            ) - top
        optimizer.step()
        (state,) = optimizer.state.values()
        after = joined(module, state["planes"])[5]
        step = 0.3 * top
        moved = np.clip(before - direction.cpu().numpy() * step, -top, top - 1)
        assert (abs(after - moved) < 1).all()  # rounded up or down
        before = after


def test_a_step_equals_the_oracles_gradient_of_the_lowest_bit() -> None:
    module, twin = bag(96), bag(96)
    optimizer = CounterSGD(packed_parameters(module), bits=2, seed=4)
    grad = torch.randn(3, 24, generator=seeded(0))
    module(INDICES).backward(grad)
    optimizer.step()
    (state,) = optimizer.state.values()
    planes, rows = np.zeros((10, 3, 1), np.int32), np.zeros(10, np.int32)
    words = twin.words.cpu().numpy().copy()
    distinct = np.unique(INDICES.cpu().numpy())
    of_lowest = (grad / 15).cpu().numpy()
    sums = np.zeros((len(distinct), 24), np.float32)
    for number, row in enumerate(distinct):
        for number_of_bag, entries in enumerate(INDICES.tolist()):
            for _ in range(entries.count(row)):
                sums[number] += of_lowest[number_of_bag]
    backend = select(module.words.device.type)
    step = optimizer.rule(optimizer._table_step(0, module.anchor, optimizer.param_groups[0], backend))
    assert step.rate == np.float32(BINARY_RECIPES[8]["lr"] * 128)
    ORACLE.counter_update(words, planes, rows, totals.new(), distinct, sums, rule=replace(step, step=0))
    np.testing.assert_array_equal(module.words.cpu().numpy(), words)
    np.testing.assert_array_equal(state["planes"].cpu().numpy(), planes)
    np.testing.assert_array_equal(state["row_state"].cpu().numpy(), rows)


@pytest.mark.parametrize("make", [lambda p: BitFlip(p, lr=0.1, seed=0), lambda p: VoteFlip(p, lr=1.0, bits=2, seed=0)])
def test_other_counter_optimizers_train_numbers(make: Any) -> None:
    module = bag()
    optimizer = make(packed_parameters(module))
    before = module.to_bool()
    for _ in range(5):
        optimizer.zero_grad()
        module(INDICES).backward(torch.randn(3, 16))
        optimizer.step()
    assert (before != module.to_bool())[[0, 3, 7]].any()
    assert not (before != module.to_bool())[[4, 5, 6]].any()


def test_numbers_learn_a_target() -> None:
    torch.manual_seed(0)
    module = bag(128, mode="sum")
    target = torch.rand(10, 32) * 1.6 - 0.8
    optimizer = CounterSGD(packed_parameters(module), lr=0.05, bits=2, decay=0.0, seed=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (module(torch.arange(10)[:, None]) - target).square().sum().backward()
        optimizer.step()
        schedule.step()
    error = (module(torch.arange(10)[:, None]) - target).abs()
    assert error.mean() < 0.06  # 16 values are 0.133 apart, so that rounding alone costs 0.033


def test_diagnostics_count_how_far_values_are_from_the_middle() -> None:
    module = bag()
    optimizer = CounterSGD(packed_parameters(module), bits=2, seed=0)
    module(INDICES).sum().backward()
    optimizer.step()
    (histogram,) = optimizer.confidence_histogram()
    assert histogram is not None
    assert len(histogram) == 128
    assert histogram.sum() == 10 * 16
    (state,) = optimizer.state.values()
    v = joined(module, state["planes"])
    np.testing.assert_array_equal(histogram.cpu().numpy(), np.bincount(np.where(v < 0, ~v, v).ravel(), minlength=128))


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    module = bag()
    with pytest.raises(ArgumentError, match=r"bits_per_value.*2, 4 or 8 with code='binary'"):
        bag(64, 16)
    with pytest.raises(ArgumentError, match="'thermometer' or 'binary'"):
        PackedEmbeddingBag(10, 64, bits_per_value=4, code="gray")
    with pytest.raises(ArgumentError, match=r"scale.*None or 'table'"):
        bag(scale="row")
    with pytest.raises(ArgumentError, match=r"bits.*at most 2 for a table of 4 bits a value"):
        CounterSGD(packed_parameters(module), bits=8)
    with pytest.raises(ArgumentError, match=r"code='binary'.*Use CounterSGD"):
        SignMomentum(packed_parameters(module), lr=0.1)
    other = PackedEmbeddingBag(10, 64)
    with pytest.raises(ArgumentError, match="share a group"):
        CounterSGD([module.anchor, other.anchor], bits=2)
    CounterSGD([module.anchor, other.anchor], bits=2, lr=0.1, decay=0.1)


def test_the_state_of_other_counters_is_refused() -> None:
    binary, other = bag(), PackedEmbeddingBag(10, 64, bits_per_value=4)
    optimizers = [CounterSGD(packed_parameters(module), bits=2, seed=0) for module in (binary, other)]
    for module, optimizer in zip((binary, other), optimizers, strict=True):
        module(INDICES).sum().backward()
        optimizer.step()
    with pytest.raises(StateMismatchError, match=r"columns_per_counter=1.*columns_per_counter=4"):
        optimizers[0].load_state_dict(optimizers[1].state_dict())
    with pytest.raises(StateMismatchError, match=r"columns_per_counter=4.*columns_per_counter=1"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())


def test_a_resumed_run_equals_one_that_never_stopped() -> None:
    def run(stop_after: int | None) -> list[torch.Tensor]:
        module = bag()
        optimizer = CounterSGD(packed_parameters(module), bits=2, seed=0)
        draw = seeded(0)
        for step in range(6):
            if step == stop_after:
                saved = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                module = bag()
                optimizer = CounterSGD(packed_parameters(module), bits=2, seed=9)
                module.load_state_dict(saved["module"])
                optimizer.load_state_dict(saved["optimizer"])
            optimizer.zero_grad()
            module(INDICES).backward(torch.randn(3, 16, generator=draw))
            optimizer.step()
        (state,) = optimizer.state.values()
        return [module.words, state["planes"], state["row_state"]]

    for one, other in zip(run(None), run(3), strict=True):
        assert torch.equal(one, other)
