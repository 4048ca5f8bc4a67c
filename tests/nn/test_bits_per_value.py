"""Values of several bits: results, gradients, state and export."""

import copy

import numpy as np
import pytest
import torch

from packedbag import PackedBagError, PackedEmbedding, PackedEmbeddingBag
from packedbag.core.thermometer import centers
from packedbag.io.tables import load, save
from packedbag.optim import CounterSGD, dense_parameters, packed_parameters
from tests.devices import seeded

V, D = 40, 96
INDICES = torch.tensor([[0, 1, 2], [3, 4, 29]])


def pair(bits, **options):
    """Return a module, and one with the same weights whose values have one bit."""
    module = PackedEmbeddingBag(V, D, bits_per_value=bits, generator=seeded(3), **options)
    plain = PackedEmbeddingBag(V, D, **{k: v for k, v in options.items() if k != "output_dtype"})
    plain.load_state_dict(module.state_dict())
    return module, plain


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("scale", [None, "table", "row"])
def test_a_value_is_the_mean_of_its_bits(bits, mode, scale):
    module, plain = pair(bits, mode=mode, scale=scale)
    found = module(INDICES)
    assert found.shape == (2, D // bits)
    torch.testing.assert_close(found, plain(INDICES).view(2, -1, bits).mean(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_to_the_dtype_last(dtype):
    module, plain = pair(4, mode="mean", output_dtype=dtype)
    found = module(INDICES)
    assert found.dtype == dtype
    assert torch.equal(found, plain(INDICES).view(2, -1, 4).mean(2).to(dtype))


def test_all_bits_of_a_value_get_its_gradient_over_their_number():
    module, plain = pair(4)
    upstream = torch.randn(2, D // 4, generator=seeded(1))
    (module(INDICES) * upstream).sum().backward()
    (plain(INDICES) * upstream.repeat_interleave(4, 1) / 4).sum().backward()
    mine, other = CounterSGD([module.anchor], lr=0.3, seed=0), CounterSGD([plain.anchor], lr=0.3, seed=0)
    mine.step()
    other.step()
    assert torch.equal(module.words, plain.words)


def test_a_lookup_has_one_value_for_so_many_bits():
    module = PackedEmbedding(V, D, bits_per_value=8)
    found = module(torch.zeros(5, 7, dtype=torch.int64))
    assert found.shape == (5, 7, D // 8)
    assert torch.equal(found[0, 0], torch.where(module.to_bool()[0], 1.0, -1.0).view(-1, 8).mean(1))


@pytest.mark.parametrize(
    ("options", "name"), [({"mode": "max"}, "mode"), ({"output_dtype": torch.int32}, "output_dtype")]
)
def test_what_has_no_values_is_refused(options, name):
    with pytest.raises(PackedBagError, match=name):
        PackedEmbeddingBag(V, D, bits_per_value=4, **options)


@pytest.mark.parametrize("scale", [None, "table"])
@pytest.mark.parametrize("bits", [1, 4])
def test_an_exported_table_gives_the_values_of_its_module(tmp_path, scale, bits):
    module = PackedEmbeddingBag(V, D, mode="mean", scale=scale, bits_per_value=bits)
    save(module, tmp_path / "t.safetensors")
    table = load(tmp_path / "t.safetensors")
    assert table.bits_per_value == bits
    expected = module(INDICES).detach().cpu().numpy()
    np.testing.assert_allclose(table.bag(INDICES.cpu().numpy(), mode="mean"), expected, rtol=1e-6)
    assert table.rows(INDICES.cpu().numpy()).shape == (2, 3, D // bits)
    if bits > 1:
        assert f"bits_per_value={bits}" in repr(table)
        assert f"bits_per_value={bits}" in repr(module)
        with pytest.raises(PackedBagError, match="mode"):
            table.bag(INDICES.cpu().numpy(), mode="majority")


def test_no_bags_are_no_values():
    module, none = PackedEmbeddingBag(V, D, bits_per_value=4), torch.zeros((0, 3), dtype=torch.int64)
    assert module(none).shape == (0, D // 4)
    assert module.to_table().bag(none.cpu().numpy()).shape == (0, D // 4)
    assert module.to_table().rows(none.cpu().numpy()).shape == (0, 3, D // 4)


def test_a_copy_has_values_of_as_many_bits():
    module = PackedEmbeddingBag(V, D, bits_per_value=4)
    assert torch.equal(copy.deepcopy(module)(INDICES), module(INDICES))


def counters_at_rest(bits_per_value, spacing):
    """Return the mean of each column's counters (D,) after many steps that only decay."""
    torch.manual_seed(0)
    module = PackedEmbedding(400, D, bits_per_value=bits_per_value)
    optimizer = CounterSGD([module.anchor], lr=0.2, adaptivity=None, decay=0.5, spacing=spacing, seed=0)
    for _ in range(120):
        (module(torch.arange(400)) * 0).sum().backward()
        optimizer.step()
    planes = optimizer.state[module.anchor]["planes"]
    m = sum(((planes[:, :, p, None] >> torch.arange(32) & 1) << p for p in range(7)), start=torch.zeros(1)).long()
    value = torch.where(module.to_bool(), m.flatten(1), -1 - m.flatten(1))
    return value.double().mean(0).cpu().numpy()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_counters_without_evidence_come_to_rest_at_their_centers(bits):
    expected = centers(D, 25.59375 if bits > 1 else 0.0, bits) - 0.5
    np.testing.assert_allclose(counters_at_rest(bits, 0.2), expected, atol=0.6)


def test_without_spacing_they_rest_at_zero():
    np.testing.assert_allclose(counters_at_rest(4, 0.0), -0.5, atol=0.6)


@pytest.mark.parametrize("spacing", [-0.1, 1.1, float("nan")])
def test_a_spacing_is_a_part_of_the_range(spacing):
    module = PackedEmbedding(V, D, bits_per_value=4)
    with pytest.raises(PackedBagError, match="spacing"):
        CounterSGD([module.anchor], lr=0.1, spacing=spacing)


def test_a_run_that_was_saved_goes_on_as_it_would_have():
    torch.manual_seed(5)
    model = torch.nn.Sequential(PackedEmbeddingBag(V, D, bits_per_value=4, scale="table"), torch.nn.Linear(D // 4, 1))

    def steps(model, bits, count):
        for k in range(count):
            bits.zero_grad()
            (model((INDICES + k) % V) - 1).square().mean().backward()
            bits.step()

    first = CounterSGD(packed_parameters(model), lr=0.3, decay=0.3, seed=1)
    steps(model, first, 5)
    twin = copy.deepcopy(model)
    second = CounterSGD(packed_parameters(twin), lr=0.1, seed=2)
    second.load_state_dict(first.state_dict())
    steps(model, first, 5)
    steps(twin, second, 5)
    assert torch.equal(model[0].words, twin[0].words)
    assert len(dense_parameters(twin)) == 3


def test_gradients_wait_by_value_not_by_bit():
    module = PackedEmbeddingBag(V, D, bits_per_value=8)
    module(INDICES).sum().backward()
    assert module.sink.parts[0].grad.shape == (2, D // 8)


def test_columns_of_other_widths_are_trained_as_wide_ones():
    """72 columns are two whole words and a part of one."""
    module = PackedEmbedding(V, 72, bits_per_value=8)
    before = module.to_bool()
    optimizer = CounterSGD([module.anchor], lr=1.0, seed=0)
    (module(torch.arange(V)) * 5).sum().backward()
    optimizer.step()
    assert (module.to_bool() & ~before).sum() == 0
    assert not module.to_bool().any()
