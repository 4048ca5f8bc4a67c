"""PackedEmbeddingBag against torch.nn.EmbeddingBag holding the same +-1 weights: forward and gradients."""

import pytest
import torch

from packedbag import PackedEmbedding, PackedEmbeddingBag
from tests.dense import dense_gradient, signs, twin

V, D = 40, 70
MODES = ("sum", "mean", "max")
OFFSETS = [0, 3, 3, 4, 9]  # a bag of three, an empty one, one of one, one of five, one of the rest


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=3e-6, atol=3e-6)  # a GPU adds in another order every time


def call_both(module, *args, **kwargs):
    """Return both outputs, after comparing outputs and gradients for one random grad_out."""
    reference = twin(module)
    ours, theirs = module(*args, **kwargs), reference(*args, **kwargs)
    close(ours, theirs)
    grad = torch.randn_like(ours)
    ours.backward(grad)
    theirs.backward(grad)
    close(dense_gradient(module), reference.weight.grad)
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", MODES)
def test_two_dimensional_indices(mode, dtype):
    call_both(PackedEmbeddingBag(V, D, mode=mode), torch.randint(0, V, (6, 9), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", MODES)
def test_offsets_with_an_empty_bag(mode, dtype):
    indices = torch.randint(0, V, (20,), dtype=dtype)
    call_both(PackedEmbeddingBag(V, D, mode=mode), indices, torch.tensor(OFFSETS, dtype=dtype))


@pytest.mark.parametrize("mode", MODES)
def test_the_last_offset_may_be_listed(mode):
    module = PackedEmbeddingBag(V, D, mode=mode, include_last_offset=True)
    call_both(module, torch.randint(0, V, (20,)), torch.tensor([*OFFSETS, 20]))


@pytest.mark.parametrize("padding_idx", [0, 7, -1])
@pytest.mark.parametrize("mode", MODES)
def test_padding_entries_are_left_out(mode, padding_idx):
    module = PackedEmbeddingBag(V, D, mode=mode, padding_idx=padding_idx)
    indices = torch.randint(0, V, (8, 6))
    indices[:, 2] = module.padding_idx
    indices[3] = module.padding_idx
    call_both(module, indices)


@pytest.mark.parametrize("two_dimensional", [True, False])
@pytest.mark.parametrize("padding_idx", [None, 5])
def test_per_sample_weights_and_their_gradient(padding_idx, two_dimensional):
    module = PackedEmbeddingBag(V, D, padding_idx=padding_idx)
    reference = twin(module)
    indices = torch.randint(0, V, (20,))
    indices[4] = 5
    offsets = torch.tensor(OFFSETS)
    if two_dimensional:
        indices, offsets = indices.view(4, 5), None
    mine = torch.randn(indices.shape, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    ours, expected = module(indices, offsets, mine), reference(indices, offsets, theirs)
    close(ours, expected)
    grad = torch.randn_like(ours)
    ours.backward(grad)
    expected.backward(grad)
    # Sums of D products, each side's in its own order: they differ by roundings of what is summed, not of the result.
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=5e-7 * float(grad.abs().sum(dim=1).max()))
    close(dense_gradient(module), reference.weight.grad)


def test_a_weighted_mean_divides_by_the_number_of_entries():
    module = PackedEmbeddingBag(V, D, mode="mean")
    indices = torch.randint(0, V, (3, 4))
    weights = torch.randn(3, 4, requires_grad=True)
    expected = (signs(module)[indices] * weights[..., None]).sum(1) / 4
    close(module(indices, per_sample_weights=weights), expected)
    grad = torch.randn(3, D)
    (theirs,) = torch.autograd.grad(expected, weights, grad)
    module(indices, per_sample_weights=weights).backward(grad)
    close(weights.grad, theirs)


@pytest.mark.parametrize("scale", ["table", "row"])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_scale_multiplies_rows_and_is_a_factor_of_the_gradient(mode, scale):
    module = PackedEmbeddingBag(V, D, mode=mode, scale=scale)
    with torch.no_grad():
        module.scale.copy_(torch.rand(module.scale.shape) + 0.5)
    indices = torch.randint(0, V, (5, 3))
    weight = signs(module).requires_grad_()
    factor = module.scale.detach().clone().requires_grad_()
    scaled = weight * (factor if scale == "table" else factor[:, None])
    expected = torch.nn.functional.embedding_bag(indices, scaled, mode=mode)
    out = module(indices)
    close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    close(dense_gradient(module), weight.grad)
    if scale == "table":
        torch.testing.assert_close(module.scale.grad, factor.grad, rtol=1e-4, atol=1e-4)


def test_majority_is_the_sign_of_the_sum_and_has_the_gradient_of_the_mean():
    module = PackedEmbeddingBag(V, D, mode="majority")
    mean = PackedEmbeddingBag(V, D, mode="mean")
    mean.load_state_dict(module.state_dict())
    indices = torch.randint(0, V, (6, 4))
    out = module(indices)
    assert torch.equal(out, torch.where(signs(module)[indices].sum(1) >= 0, 1.0, -1.0))
    grad = torch.randn_like(out)
    out.backward(grad)
    mean(indices).backward(grad)
    assert torch.equal(dense_gradient(module), dense_gradient(mean))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (3, 0)])
def test_lookup_of_any_shape(shape):
    module = PackedEmbedding(V, D, padding_idx=2)
    indices = torch.randint(0, V, shape)
    reference = torch.nn.Embedding(V, D, padding_idx=2)
    with torch.no_grad():
        reference.weight.copy_(signs(module))
        reference.weight[2] = 0
    out, expected = module(indices), reference(indices)
    assert torch.equal(out, expected)
    if out.numel():
        out.sum().backward()
        expected.sum().backward()
        close(dense_gradient(module), reference.weight.grad)


@pytest.mark.parametrize("mode", MODES)
def test_indices_of_any_contiguity(mode):
    module = PackedEmbeddingBag(V, D, mode=mode)
    wide = torch.randint(0, V, (5, 12))
    call_both(module, wide[:, ::2])
    call_both(module, torch.randint(0, V, (9, 4)).t())
    call_both(module, torch.randint(0, V, (40,))[::2], torch.tensor(OFFSETS))


def test_grad_out_that_is_a_broadcast_scalar():
    module = PackedEmbeddingBag(V, D)
    indices = torch.randint(0, V, (5, 3))
    reference = twin(module)
    module(indices).sum().backward()
    reference(indices).sum().backward()
    close(dense_gradient(module), reference.weight.grad)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_empty_batches_and_empty_bags(mode, shape):
    module = PackedEmbeddingBag(V, D, mode=mode)
    indices = torch.zeros(shape, dtype=torch.int64)
    out = module(indices)
    assert torch.equal(out, torch.zeros(shape[0], D))
    out.sum().backward()
    assert not dense_gradient(module).any()


def test_a_table_without_rows():
    module = PackedEmbeddingBag(0, D)
    assert module(torch.zeros((3, 0), dtype=torch.int64)).tolist() == [[0.0] * D] * 3
    assert module.nbytes == 0


def test_two_uses_of_one_module_in_one_graph_add_up():
    module = PackedEmbeddingBag(V, D)
    reference = twin(module)
    a, b = torch.randint(0, V, (4, 3)), torch.randint(0, V, (4, 2))
    for table in (module, reference):
        (table(a) * 2 + table(b)).sum().backward()
    close(dense_gradient(module), reference.weight.grad)


def test_the_state_of_nn_embedding_bag_loads_as_signs_with_its_mean_magnitude():
    source = torch.nn.EmbeddingBag(V, D)
    module = PackedEmbeddingBag(V, D, scale="table")
    module.load_state_dict(source.state_dict())
    assert torch.equal(module.to_bool(), source.weight >= 0)
    close(module.scale, source.weight.abs().mean())
