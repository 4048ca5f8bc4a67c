"""packedbag.functional and packedbag.pack: what they accept, and what they say to what they do not."""

import numpy as np
import pytest
import torch

import packedbag
from packedbag import functional as F
from packedbag import pack, unpack
from tests.devices import seeded, settled

V, D = 20, 40
WEIGHTS = torch.randn(V, D, generator=seeded(0))
WORDS = pack(WEIGHTS)
SIGNS = torch.where(WEIGHTS >= 0, 1.0, -1.0)
INDICES = torch.tensor([[0, 1, 2], [3, 4, 19]])
FLAT = INDICES.flatten()


def bag(indices=INDICES, offsets=None, words=WORDS, **kwargs):
    return F.embedding_bag(indices, words, offsets, **{"embedding_dim": D, **kwargs})


def test_pack_and_unpack_agree_between_numpy_and_torch():
    assert np.array_equal(pack(WEIGHTS.cpu().numpy()), WORDS.cpu().numpy())
    assert torch.equal(unpack(WORDS, D), WEIGHTS >= 0)
    assert np.array_equal(unpack(WORDS.cpu().numpy(), D), (WEIGHTS >= 0).cpu().numpy())
    assert torch.equal(unpack(WORDS.view(torch.int32), D), WEIGHTS >= 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_pack_takes_every_floating_dtype_and_bool(dtype):
    x = WEIGHTS > 0 if dtype == torch.bool else WEIGHTS.to(dtype)
    assert torch.equal(unpack(pack(x), D), x if dtype == torch.bool else x >= 0)


def test_pack_ignores_autograd_and_keeps_leading_dimensions():
    x = torch.randn(2, 3, D, requires_grad=True)
    assert pack(x).shape == (2, 3, 2)
    assert not pack(x).requires_grad


def test_words_may_be_int32_and_not_contiguous():
    wide = torch.zeros((V, 4), dtype=torch.int32)
    wide[:, ::2] = WORDS.view(torch.int32)
    assert torch.equal(bag(words=wide[:, ::2]), bag())


def test_a_scale_is_a_number_a_tensor_or_one_value_a_row():
    expected = SIGNS[INDICES].sum(1)
    assert torch.equal(bag(scale=0.5), expected * 0.5)
    scale = torch.tensor(0.5, requires_grad=True)
    bag(scale=scale).sum().backward()
    torch.testing.assert_close(scale.grad, expected.sum())
    rows = torch.rand(V)
    torch.testing.assert_close(bag(scale=rows), (SIGNS * rows[:, None])[INDICES].sum(1))


def test_per_sample_weights_are_differentiable_without_a_module():
    weights = torch.randn(2, 3, requires_grad=True)
    bag(per_sample_weights=weights).sum().backward()
    torch.testing.assert_close(weights.grad, SIGNS[INDICES].sum(-1))


def test_half_precision_weights_take_part_and_get_half_precision_gradients():
    weights = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    bag(per_sample_weights=weights).sum().backward()
    assert weights.grad.dtype == torch.float16


def test_the_scale_multiplies_before_the_output_is_rounded():
    indices = torch.arange(V).repeat(300)[None]  # sums that float16 cannot hold exactly
    scale = torch.tensor(1 / 3)
    exact = bag(indices, scale=scale)
    assert torch.equal(bag(indices, scale=scale, output_dtype=torch.float16), exact.to(torch.float16))


@pytest.mark.parametrize(("bounds", "row"), [("clamp", V - 1), ("skip", None)])
def test_bounds_policies(bounds, row):
    out = bag(torch.tensor([[0, V + 3]]), bounds=bounds)
    assert torch.equal(out[0], SIGNS[0] + (SIGNS[row] if row is not None else 0))
    assert torch.equal(bag(torch.tensor([[-4]]), bounds="clamp")[0], SIGNS[0])


def test_a_dropped_lookup_is_a_row_of_zeros():
    out = F.embedding(torch.tensor([0, V, 2]), WORDS, embedding_dim=D, bounds="skip", padding_idx=2)
    assert torch.equal(out, torch.stack([SIGNS[0], torch.zeros(D), torch.zeros(D)]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"indices": torch.tensor([[0, 20]])}, r"indices\[1\] is 20; the table has rows 0\.\.19\. Pass bounds='clamp'"),
        ({"indices": torch.tensor([[0, 1], [-1, 0]])}, r"indices\[2\] is -1; the table has rows 0\.\.19\."),
        ({"indices": INDICES.float()}, r"indices has dtype float32; it must be int32 or int64\. Convert with"),
        ({"indices": torch.tensor(3)}, r"indices has shape \(\); it must be \(N,\) with offsets, or \(B, L\)\."),
        ({"indices": FLAT}, r"offsets is None with 1-D indices; it must be a 1-D array of bag starts\."),
        ({"offsets": torch.tensor([0])}, r"offsets is given with 2-D indices; it must be None"),
        ({"indices": FLAT, "offsets": torch.tensor([1])}, r"offsets\[0\] is 1; it must be 0\. Bag b is"),
        (
            {"indices": FLAT, "offsets": torch.tensor([0, 4, 2])},
            r"offsets\[2\] is 2; it must be at least offsets\[1\] = 4",
        ),
        ({"indices": FLAT, "offsets": torch.tensor([0, 7])}, r"offsets\[1\] is 7; it must be at most 6, the number of"),
        ({"indices": FLAT, "offsets": torch.tensor([0.0])}, r"offsets has dtype float32; it must be int32 or int64\."),
        ({"indices": FLAT, "offsets": torch.tensor([[0]])}, r"offsets has shape \(1, 1\); it must be 1-D\."),
        (
            {"indices": FLAT, "offsets": torch.zeros(0, dtype=torch.int64), "include_last_offset": True},
            r"offsets has shape \(0\); it must be at least one long\.",
        ),
        (
            {"per_sample_weights": torch.ones(2, 2)},
            r"per_sample_weights has shape \(2, 2\); it must be the shape of indices, \(2, 3\)\.",
        ),
        (
            {"per_sample_weights": torch.ones(2, 3, dtype=torch.int64)},
            r"per_sample_weights has dtype int64; it must be floating point\.",
        ),
        (
            {"per_sample_weights": torch.ones(2, 3), "mode": "max"},
            r"per_sample_weights is given with mode='max'; it must be None, except for mode='sum' and 'mean'\.",
        ),
        ({"embedding_dim": 70}, r"words has shape \(20, 2\); it must be \(V, 3\) for embedding_dim=70\."),
        ({"words": WORDS.to(torch.int64)}, r"words has dtype int64; it must be uint32 \(or int32, the same bytes\)\."),
        (
            {"output_dtype": torch.float64},
            r"output_dtype is float64; it must be one of float32, float16, bfloat16, int32",
        ),
        ({"output_dtype": torch.uint32}, r"output_dtype is uint32; it must be one of .* for mode='sum'\."),
        (
            {"output_dtype": torch.int32, "scale": 2.0},
            r"scale is given with output_dtype=int32; it must be None for output_dtype=int32\.",
        ),
        (
            {"output_dtype": torch.int32, "per_sample_weights": torch.ones(2, 3)},
            r"per_sample_weights is given with output_dtype=int32; it must be None for output_dtype=int32\.",
        ),
        ({"scale": torch.ones(3)}, r"scale has shape \(3\); it must be one value, or \(20,\): one value a row\."),
        ({"scale": torch.ones(V, dtype=torch.int32)}, r"scale has dtype int32; it must be floating point\."),
        (
            {"scale": torch.ones(V, requires_grad=True)},
            r"scale is a \(V,\) tensor that requires a gradient; it must be",
        ),
        ({"scale": torch.ones(V), "mode": "majority"}, r"scale is one value a row with mode='majority'; it must be"),
        (
            {"scale": torch.ones(V, device="meta")},
            r"scale is on meta; it must be on (cpu|cuda:0), where the table",
        ),
        ({"indices": INDICES.to("meta")}, r"indices is on meta; it must be on (cpu|cuda:0), where the table"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(kwargs, message):
    with pytest.raises(packedbag.PackedBagError, match=message):
        settled(lambda: bag(**kwargs))


def test_an_empty_table_says_that_it_has_no_rows():
    with pytest.raises(IndexError, match=r"indices\[0\] is 0; the table has no rows\."):
        settled(lambda: bag(torch.tensor([[0]]), words=WORDS[:0]))


def test_a_lookup_names_its_output_dtypes():
    with pytest.raises(packedbag.PackedBagError, match="it must be float32, float16 or bfloat16 for a lookup"):
        F.embedding(INDICES, WORDS, embedding_dim=D, output_dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("indices", {"indices": INDICES.cpu().numpy()}),
        ("words", {"words": WORDS.cpu().numpy()}),
        ("offsets", {"indices": FLAT, "offsets": [0, 3]}),
        ("per_sample_weights", {"per_sample_weights": np.ones((2, 3), np.float32)}),
        ("scale", {"scale": np.ones(V, np.float32)}),
    ],
)
def test_what_is_no_tensor_is_named(name, kwargs):
    with pytest.raises(packedbag.PackedBagError, match=rf"{name} is a (ndarray|list); it must be a torch tensor"):
        bag(**kwargs)


def test_a_second_derivative_is_refused_and_create_graph_is_not():
    weights = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad((bag(per_sample_weights=weights) ** 2).sum(), weights, create_graph=True)
    expected = torch.einsum("bd,bld->bl", 2 * SIGNS[INDICES].sum(1), SIGNS[INDICES])
    assert torch.equal(gradient.detach(), expected)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
