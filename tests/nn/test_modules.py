"""What a packed module promises beside its arithmetic: state, copies, moves, and clear errors."""

import copy
import io
import pickle

import pytest
import torch

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag
from packedbag.ops.sink import sink_of
from packedbag.optim import CounterSGD, dense_parameters, packed_parameters
from tests.devices import seeded

V, D = 30, 100
INDICES = torch.tensor([[0, 1, 2], [3, 4, 29]])


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def trains(module):
    """Say whether backward and step reach this module's own bits."""
    optimizer = CounterSGD(packed_parameters(module), lr=1.0, seed=0)
    before = module.words.clone()
    module(INDICES).pow(2).sum().backward()
    optimizer.step()
    return not torch.equal(before, module.words)


def test_weight_is_uint32_and_shares_memory_with_the_module():
    module = PackedEmbeddingBag(V, D)
    assert module.weight.dtype == torch.uint32
    assert module.weight.shape == (V, 4)
    assert module.weight.data_ptr() == module.words.data_ptr()
    assert module.nbytes == V * 4 * 4


def test_fresh_bits_are_fair_seeded_and_leave_the_tail_zero():
    one = PackedEmbeddingBag(2000, D, generator=seeded(3))
    two = PackedEmbeddingBag(2000, D, generator=seeded(3))
    assert torch.equal(one.words, two.words)
    assert abs(one.to_bool().float().mean().item() - 0.5) < 0.01
    assert not (one.words[:, -1] & ~0xF).any()
    one.reset_parameters()
    assert not torch.equal(one.words, two.words)


def test_state_dict_holds_the_words_as_uint32_under_the_key_weight_alone():
    assert list(PackedEmbeddingBag(V, D).state_dict()) == ["weight"]
    state = torch.nn.Sequential(PackedEmbedding(V, D, scale="row")).state_dict()
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {
        "0.weight": (torch.uint32, (V, 4)),
        "0.scale": (torch.float32, (V,)),
    }


@pytest.mark.parametrize("form", ["uint32", "int32", "bool", "float32", "float16", "bfloat16"])
def test_state_dict_accepts_words_bools_and_floats(form):
    source, module = PackedEmbeddingBag(V, D), PackedEmbeddingBag(V, D)
    if form == "uint32":
        weight = source.weight
    elif form == "int32":
        weight = source.words
    elif form == "bool":
        weight = source.to_bool()
    else:
        weight = (source.to_bool().float() - 0.5).to(getattr(torch, form))
    module.load_state_dict({"weight": weight})
    assert torch.equal(module.words, source.words)


def test_loaded_words_cannot_smuggle_ones_into_the_tail():
    module = PackedEmbeddingBag(V, D)
    module.load_state_dict({"weight": torch.full((V, 4), -1, dtype=torch.int32)})
    assert not (module.words[:, -1] & ~0xF).any()
    assert module.to_bool().all()


def test_a_checkpoint_of_another_shape_is_refused_and_nothing_is_lost():
    module = PackedEmbeddingBag(V, D)
    before = module.words.clone()
    message = r"weight: weight has shape \(31, 4\); it must be \(30, 4\) for uint32\."
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(PackedEmbeddingBag(V + 1, D).state_dict())
    with pytest.raises(RuntimeError, match="weight has dtype int64; it must be uint32 or int32 words"):
        module.load_state_dict({"weight": torch.zeros((V, D), dtype=torch.int64)})
    assert torch.equal(before, module.words)


def test_missing_and_unexpected_keys_are_reported_as_torch_does():
    module = PackedEmbeddingBag(V, D, scale="table")
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        module.load_state_dict({"scale": torch.ones(())})
    with pytest.raises(RuntimeError, match=r'Missing key.*"scale"'):
        module.load_state_dict({"weight": module.weight})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"other"'):
        module.load_state_dict({**module.state_dict(), "other": torch.ones(1)})
    result = module.load_state_dict({}, strict=False)
    assert set(result.missing_keys) == {"weight", "scale"}


def test_a_memory_mapped_checkpoint_is_assigned_without_a_copy(tmp_path):
    source = PackedEmbeddingBag(V, D)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", mmap=True)
    module = PackedEmbeddingBag(V, D, device="meta")
    module.load_state_dict(state, assign=True)
    assert module.words.data_ptr() == state["weight"].data_ptr()
    assert torch.equal(module(INDICES), source(INDICES))
    assert trains(module)


def test_assigned_words_that_are_not_contiguous_are_copied():
    source, module = PackedEmbeddingBag(V, D), PackedEmbeddingBag(V, D)
    wide = torch.zeros((V, 8), dtype=torch.int32)
    wide[:, ::2] = source.words
    module.load_state_dict({"weight": wide[:, ::2]}, assign=True)
    assert module.words.is_contiguous()
    assert torch.equal(module(INDICES), source(INDICES))


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("scale", [None, "table", "row"])
def test_copies_are_independent_and_their_anchors_lead_to_them(kind, scale):
    module = PackedEmbeddingBag(V, D, scale=scale)
    if kind == "deepcopy":
        other = copy.deepcopy(module)
    elif kind == "pickle":
        other = pickle.loads(pickle.dumps(module))
    else:
        other = torch.load(saved(module), weights_only=False)
    assert torch.equal(other.words, module.words)
    assert sink_of(other.anchor) is other.sink is not module.sink
    before = module.words.clone()
    assert trains(other)
    assert torch.equal(before, module.words)
    assert trains(module)


def test_a_shallow_copy_shares_the_bits_and_both_still_train():
    module = PackedEmbeddingBag(V, D)
    other = copy.copy(module)
    assert other.words is module.words
    assert other.anchor is not module.anchor
    assert trains(module)
    assert trains(other)


def test_a_copied_model_keeps_shared_tables_shared():
    model = torch.nn.ModuleList([PackedEmbeddingBag(V, D)])
    model.append(model[0])
    other = copy.deepcopy(model)
    assert other[0] is other[1]
    assert len(packed_parameters(other)) == 1


@pytest.mark.parametrize("convert", ["double", "half", "bfloat16", "float"])
def test_converting_a_model_leaves_bits_anchor_and_scale_alone(convert):
    module = PackedEmbeddingBag(V, D, scale="table")
    before = module.words.clone()
    getattr(torch.nn.Sequential(module), convert)()
    assert torch.equal(module.words, before)
    assert module.words.dtype == torch.int32
    assert module.anchor.dtype == module.scale.dtype == torch.float32
    assert trains(module)


def test_moving_through_another_device_keeps_the_anchor_linked():
    module = PackedEmbeddingBag(V, D).to("meta").to_empty(device=torch.empty(0).device)
    module.reset_parameters()
    assert sink_of(module.anchor) is module.sink
    assert trains(module)


def test_from_pretrained_takes_signs_and_mean_magnitudes():
    weights = torch.randn(V, D)
    by_row = PackedEmbeddingBag.from_pretrained(weights, scale="row", mode="mean")
    assert torch.equal(by_row.to_bool(), weights >= 0)
    torch.testing.assert_close(by_row.scale, weights.abs().mean(1))
    whole = PackedEmbedding.from_pretrained(weights, scale="table", freeze=True)
    torch.testing.assert_close(whole.scale.detach(), weights.abs().mean())
    assert not whole.anchor.requires_grad
    bits = PackedEmbeddingBag.from_pretrained(weights > 1)
    assert torch.equal(bits.to_bool(), weights > 1)
    with pytest.raises(packedbag.PackedBagError, match=r"tensor is of dtype int64; it must be floating point or bool"):
        PackedEmbeddingBag.from_pretrained(torch.zeros((2, 2), dtype=torch.int64))
    with pytest.raises(packedbag.PackedBagError, match="tensor is NaN somewhere; it must be free of NaN"):
        PackedEmbeddingBag.from_pretrained(torch.full((2, 2), float("nan")))


def test_to_bool_of_some_rows():
    module = PackedEmbeddingBag(V, D)
    rows = torch.tensor([5, 1])
    assert torch.equal(module.to_bool(rows), module.to_bool()[rows])


def test_to_table_serves_the_same_values_without_torch_tensors():
    module = PackedEmbeddingBag(V, D, mode="mean", scale="row", padding_idx=3)
    module.scale.uniform_(0.5, 1.5)
    table = module.to_table()
    served = table.bag(INDICES.cpu().numpy(), mode=table.metadata["mode"], padding_idx=table.metadata["padding_idx"])
    expected = module(INDICES).detach().cpu()
    torch.testing.assert_close(torch.from_numpy(served), expected, rtol=0, atol=1e-6 * 1.5)  # row scales: weighted


def test_output_dtypes():
    for dtype in (torch.float16, torch.bfloat16):
        assert PackedEmbeddingBag(V, D, output_dtype=dtype)(INDICES).dtype == dtype
    module = PackedEmbeddingBag(V, D, output_dtype=torch.int32)
    assert torch.equal(module(INDICES), (module.to_bool().int() * 2 - 1)[INDICES].sum(1))
    packed = PackedEmbeddingBag(V, D, mode="majority", output_dtype=torch.uint32)(INDICES)
    assert (packed.dtype, packed.shape) == (torch.uint32, (2, 4))
    assert not packed.requires_grad


def test_a_frozen_table_collects_nothing():
    module = PackedEmbeddingBag(V, D, scale="table")
    module.anchor.requires_grad_(False)
    module(INDICES).sum().backward()
    assert module.sink.parts == []
    assert module.scale.grad is not None


def test_backward_after_a_step_is_refused_as_the_bits_have_changed():
    module = PackedEmbeddingBag(V, D)
    optimizer = CounterSGD([module.anchor], lr=1.0)
    stale = module(INDICES).sum()
    module(INDICES).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_a_table_scale_is_dense_and_a_row_scale_is_nobodys_parameter():
    model = torch.nn.Sequential(PackedEmbeddingBag(V, D, scale="table"), torch.nn.Linear(D, 1))
    assert [id(p) for p in packed_parameters(model)] == [id(model[0].anchor)]
    assert {id(p) for p in dense_parameters(model)} == {id(model[0].scale), *map(id, model[1].parameters())}
    assert dense_parameters(PackedEmbeddingBag(V, D, scale="row")) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embedding_dim": 0}, r"embedding_dim is 0; it must be in 1\.\.524288\."),
        ({"embedding_dim": 1.5}, r"embedding_dim is 1\.5; it must be an integer\."),
        ({"num_embeddings": -1}, r"num_embeddings is -1; it must be at least 0\."),
        ({"padding_idx": 30}, r"padding_idx is 30; it must be in -30\.\.29 \(num_embeddings=30\)\."),
        ({"padding_idx": -31}, r"padding_idx is -31; it must be in -30\.\.29 \(num_embeddings=30\)\."),
        ({"mode": "median"}, r"mode is 'median'; it must be one of 'sum', 'mean', 'majority', 'max'\."),
        ({"mode": "max", "scale": "row"}, r"scale is one value a row with mode='max'; it must be a single value"),
        ({"output_dtype": torch.uint32}, r"output_dtype is uint32; it must be one of .* for mode='sum'\."),
        ({"output_dtype": torch.int32, "scale": "table"}, r"scale is given with output_dtype=int32; it must be None"),
        ({"scale": "column"}, r"scale is 'column'; it must be None, 'row' or 'table'\."),
        ({"bounds": "wrap"}, r"bounds is 'wrap'; it must be one of 'raise', 'clamp', 'skip', 'unchecked'\."),
    ],
)
def test_a_wrong_constructor_argument_is_named(kwargs, message):
    with pytest.raises(packedbag.PackedBagError, match=message):
        PackedEmbeddingBag(**{"num_embeddings": V, "embedding_dim": D, **kwargs})


def test_a_module_that_is_never_stepped_says_so():
    module = PackedEmbeddingBag(V, D)
    for _ in range(3):
        module(INDICES).sum().backward()
    with pytest.warns(UserWarning, match=r"PackedEmbeddingBag\(30, 100\): 4 backward calls and no step of a packed"):
        module(INDICES).sum().backward()


def test_a_module_given_to_another_optimizer_says_so_and_does_not_grow():
    module = PackedEmbeddingBag(V, D)
    adam = torch.optim.Adam(module.parameters())

    def train_with_adam():
        for _ in range(6):
            adam.zero_grad()
            module(INDICES).sum().backward()
            adam.step()

    with pytest.warns(UserWarning, match="its bits are not being trained"):
        train_with_adam()
    assert len(module.sink.parts) == 1


def test_fsdp_is_refused_with_a_word_on_what_to_use():
    module = PackedEmbeddingBag(V, D)
    model = torch.nn.Sequential(module)
    module.anchor = torch.nn.Parameter(torch.zeros(1))  # what fully_shard does: another object takes its place
    with pytest.raises(packedbag.PackedBagError, match="FSDP is not supported yet"):
        packed_parameters(model)
    with pytest.raises(packedbag.PackedBagError, match="FSDP is not supported yet"):
        module(INDICES).sum().backward()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["row", "table"])
def test_a_loaded_scale_of_any_dtype_and_strides_becomes_contiguous_float32(assign, kind):
    source = PackedEmbeddingBag(20, 40, scale=kind)
    with torch.no_grad():
        source.scale.copy_(torch.rand(source.scale.shape))
    state = source.state_dict()
    state["scale"] = torch.stack([state["scale"]] * 2, -1).double()[..., 0]
    module = PackedEmbeddingBag(20, 40, scale=kind)
    module.load_state_dict(state, assign=assign)
    assert module.scale.dtype == torch.float32
    assert module.scale.is_contiguous()
    indices = torch.tensor([[0, 1, 2], [3, 4, 19]])
    assert torch.equal(module(indices), source(indices))


def test_a_nan_at_the_end_of_a_large_table_leaves_every_bit(monkeypatch):
    monkeypatch.setattr("packedbag.nn.convert.CHUNK_WEIGHTS", 64)
    module = PackedEmbeddingBag(20, 32)
    before = module.words.clone()
    weights = torch.randn(20, 32)
    weights[-1, -1] = float("nan")
    with pytest.raises(RuntimeError, match="weight is NaN somewhere; it must be free of NaN"):
        module.load_state_dict({"weight": weights})
    assert torch.equal(module.words, before)


def test_an_array_instead_of_a_tensor_is_refused():
    module = PackedEmbeddingBag(3, 32)
    with pytest.raises(RuntimeError, match="weight: a ndarray; it must be a torch tensor"):
        module.load_state_dict({"weight": module.weight.cpu().numpy()})
    with pytest.raises(packedbag.PackedBagError, match="tensor is a ndarray; it must be a torch tensor"):
        PackedEmbeddingBag.from_pretrained(module.to_bool().cpu().numpy())
