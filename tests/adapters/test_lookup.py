"""`BinaryEmbeddingCuda` against bitorch-engine's lookup layer: the same bits, scales and values, on a CPU too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.adapters.bitorch_engine import BinaryEmbeddingCuda
from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from packedbag.optim import CounterSGD
from tests.adapters.reference import reference_lookup
from tests.devices import seeded


def layer_of(rows: int = 30, dim: int = 20, seed: int = 0, **options: Any) -> BinaryEmbeddingCuda:
    return BinaryEmbeddingCuda(num_embeddings=rows, embedding_dim=dim, generator=seeded(seed), **options)


def packed_by_hand(weight: torch.Tensor) -> torch.Tensor:
    """Pack the signs of floats as the original does: LSB first, padding columns 0."""
    rows, dim = weight.shape
    packed = torch.zeros(rows, -(-dim // 8), dtype=torch.uint8)
    for column in range(dim):
        packed[:, column // 8] |= (weight[:, column] >= 0).to(torch.uint8) << (column % 8)
    return packed


@given(data=st.data())
def test_forward_equals_the_reference_for_every_shape(data: st.DataObject) -> None:
    rows, dim = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 7, 8, 9, 31, 32, 33, 100]))
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    layer = layer_of(rows, dim, data.draw(st.integers(0, 9)))
    indices = torch.randint(rows, shape, generator=seeded(1))
    found = layer(indices)
    assert found.shape == (*shape, dim)
    assert torch.equal(found, reference_lookup(indices, layer.qweight, layer.scale_w, dim))


@pytest.mark.parametrize("dim", [7, 32, 100])
def test_prepare_params_takes_the_signs_around_the_mean_and_the_mean_magnitude(dim: int) -> None:
    layer = layer_of(300, dim)
    weight = torch.randn(300, dim, generator=seeded(4)) + 0.3
    layer.prepare_params(weight)
    centred = weight - weight.mean()
    assert torch.equal(layer.qweight, packed_by_hand(centred))
    torch.testing.assert_close(layer.scale_w, centred.abs().mean(1, keepdim=True))


def test_prepare_params_without_floats_changes_nothing() -> None:
    layer = layer_of()
    before = copy.deepcopy(layer.state_dict())
    layer.prepare_params()
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_fresh_layer_is_what_normal_floats_would_give() -> None:
    layer = layer_of(3000, 100)
    assert abs(layer.weight.float().mean().item() - 0.5) < 0.01
    assert layer.scale_w.mean().item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.01)
    assert layer.scale_w.std().item() == pytest.approx(((1 - 2 / torch.pi) / 100) ** 0.5, abs=0.005)


@pytest.mark.parametrize("dim", [8, 20, 31, 64])
def test_it_loads_the_originals_checkpoint(dim: int) -> None:
    weight = torch.randn(30, dim, generator=seeded(3))
    qweight, scale = packed_by_hand(weight), weight.abs().mean(1, keepdim=True)
    layer = layer_of(30, dim)
    layer.load_state_dict({"qweight": qweight, "scale_w": scale})
    assert torch.equal(layer.qweight, qweight)
    assert torch.equal(layer.scale_w, scale)
    indices = torch.tensor([[1, 2], [29, 0]])
    assert torch.equal(layer(indices), reference_lookup(indices, qweight, scale, dim))


def test_it_loads_half_precision_scales_and_clears_bits_beyond_the_columns() -> None:
    layer = layer_of(4, 20)
    layer.load_state_dict({"qweight": torch.full((4, 3), 255, dtype=torch.uint8), "scale_w": torch.ones(4, 1).half()})
    assert layer.qweight[:, 2].eq(15).all()
    assert layer.scale_w.dtype == torch.float32


def test_a_qweight_of_another_shape_or_dtype_is_refused_and_changes_nothing() -> None:
    layer = layer_of()
    before = layer.weight.to_bool()
    for qweight, says in (
        (torch.zeros(30, 4, dtype=torch.uint8), r"qweight has shape \(30, 4\); it must be \(30, 3\)"),
        (torch.zeros(30, 3, dtype=torch.int8), "qweight has dtype int8; it must be uint8"),
    ):
        with pytest.raises(RuntimeError, match=says):
            layer.load_state_dict({"qweight": qweight, "scale_w": torch.ones(30, 1)})
    assert torch.equal(layer.weight.to_bool(), before)


def test_the_padding_row_reads_as_zeros_and_is_not_trained() -> None:
    layer = layer_of(padding_idx=-1)
    assert layer.padding_idx == 29
    assert layer(torch.tensor([29])).eq(0).all()
    layer(torch.tensor([29, 3])).sum().backward()
    assert layer.active_indices.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_that_of_the_result(dtype: torch.dtype) -> None:
    layer = layer_of(dtype=dtype)
    assert layer(torch.tensor([3])).dtype == dtype


def test_it_trains_bits_and_scales() -> None:
    layer = layer_of()
    optimizer = CounterSGD(layer.parameters(), lr=0.5, seed=0)
    before = layer.scale_w.clone()
    for _ in range(20):
        (layer(torch.tensor([[1, 2]])) - 1).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert layer.weight[1:3].all()
    assert not torch.equal(before[1:3], layer.scale_w[1:3])
    assert torch.equal(before[3:], layer.scale_w[3:])


def test_qweight_shares_memory_with_the_layer() -> None:
    layer = layer_of()
    layer.qweight[3, 0] = 255
    assert layer.weight[3, :8].all()
    layer(torch.tensor([[4, 5]])).sum().backward()
    assert layer.qweight.active_indices.tolist() == [4, 5]


def test_bad_floats_are_refused_and_change_nothing() -> None:
    layer = layer_of()
    before = copy.deepcopy(layer.state_dict())
    nan = torch.zeros(30, 20)
    nan[3, 4] = torch.nan
    for weight, error in (
        (nan, ArgumentError),
        (torch.zeros(30, 19), ShapeError),
        (torch.zeros(30, 20).int(), DtypeError),
    ):
        with pytest.raises(error):
            layer.prepare_params(weight)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_bits_that_were_never_prepared_are_made_of_the_floats_beside_them() -> None:
    floats = torch.randn(30, 20, generator=seeded(3))
    layer, prepared = layer_of(), layer_of()
    prepared.prepare_params(floats)
    state = {"weight": floats, "qweight": torch.zeros(30, 3, dtype=torch.uint8), "scale_w": torch.zeros(30, 1)}
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, prepared.weight)
    assert torch.equal(layer.scale_w, prepared.scale_w)
    layer.load_state_dict({**state, "qweight": torch.ones(30, 3, dtype=torch.uint8)})
    assert layer.weight.count_nonzero() == 90  # they were: the floats are of no use
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="weight is NaN or infinite somewhere"):
        layer.load_state_dict({**state, "weight": floats / 0})
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_an_infinity_in_the_last_rows_is_refused_before_the_first_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.qweight.CHUNK_WEIGHTS", 60)
    layer = layer_of()
    before = copy.deepcopy(layer.state_dict())
    weight = torch.zeros(30, 20)
    weight[29, 3] = torch.inf
    with pytest.raises(ArgumentError, match="weight is NaN or infinite somewhere"):
        layer.prepare_params(weight)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_unknown_arguments_are_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="BinaryEmbeddingCuda ignores sparse=True"):
        layer_of(sparse=True)
