"""`BinaryEmbeddingBag` against bitorch-engine's observable behaviour, and each of its defects."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import packedbag
from packedbag.adapters.bitorch_engine import (
    BinaryEmbeddingBag,
    BinaryEmbeddingBagForward,
    BinaryEmbeddingParameter,
)
from packedbag.core.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError
from packedbag.optim import CounterSGD, packed_parameters
from tests.adapters.reference import reference_bag
from tests.devices import seeded, settled

V, D = 30, 40


def layer_of(rows: int = V, dim: int = D, seed: int = 0, **options: Any) -> BinaryEmbeddingBag:
    return BinaryEmbeddingBag(num_embeddings=rows, embedding_dim=dim, generator=seeded(seed), **options)


def gradients(layer: BinaryEmbeddingBag) -> torch.Tensor:
    """Return the gradients in the layer's sink as a dense (V, D)."""
    dense = torch.zeros(layer.num_embeddings, layer.embedding_dim)
    for part in layer.sink.parts:
        kept = part.rows < layer.num_embeddings  # a GPU marks what is left out with V
        rows, bags = part.rows[kept].long(), part.bags[kept].long()
        dense.index_add_(0, rows, part.grad[bags] / part.counts[bags].unsqueeze(1))
    return dense


# The same values -----------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(data=st.data())
def test_forward_equals_the_reference_for_every_shape(data: st.DataObject) -> None:
    rows, dim = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 7, 31, 32, 33, 64, 100, 128, 257]))
    bags, length = data.draw(st.integers(0, 9)), data.draw(st.one_of(st.integers(0, 12), st.sampled_from([255, 256])))
    seed = data.draw(st.integers(0, 99))
    dtype = data.draw(st.sampled_from([torch.int64, torch.int32]))
    layer = layer_of(rows, dim, seed, padding_idx=data.draw(st.one_of(st.none(), st.integers(-rows, rows - 1))))
    indices = torch.randint(rows, (bags, length), generator=seeded(seed)).to(dtype)
    expected = reference_bag(indices, layer.weight.to_bool())
    found = layer(indices)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.to(torch.float32))


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100])
def test_forward_equals_the_reference_in_thousands_of_random_batches(dim: int) -> None:
    generator = seeded(dim)
    layer = layer_of(V, dim)
    weight = layer.weight.to_bool()
    for number in range(600):
        shape = tuple(torch.randint(0, 12, (2,), generator=generator).tolist())
        indices = torch.randint(V, shape, generator=generator)
        assert torch.equal(layer(indices).long(), reference_bag(indices, weight)), (number, shape)


def test_a_tie_and_an_empty_bag_vote_plus_one() -> None:
    layer = layer_of(2, 4)
    layer.weight[0], layer.weight[1] = True, False
    assert layer(torch.tensor([[0, 1]])).eq(1).all()
    assert layer(torch.tensor([[0, 1, 1]])).eq(-1).all()
    assert layer(torch.empty(3, 0, dtype=torch.int64)).eq(1).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.float16, torch.bfloat16])
def test_output_dtype_is_what_was_asked_for_the_dtype_of_indices_included(dtype: torch.dtype) -> None:
    layer = layer_of(output_dtype=dtype)
    indices = torch.randint(V, (5, 3), generator=seeded(1))
    found = layer(indices)
    assert found.dtype == dtype
    assert torch.equal(found, reference_bag(indices, layer.weight.to_bool()).to(dtype))
    assert found.requires_grad == dtype.is_floating_point


def test_the_padding_row_is_false_and_votes_as_in_the_original() -> None:
    layer = layer_of(padding_idx=3)
    assert not layer.weight[3].any()
    indices = torch.tensor([[3, 5], [3, 3]])
    assert torch.equal(layer(indices).long(), reference_bag(indices, layer.weight.to_bool()))


def test_padding_votes_false_leaves_padding_entries_out_of_the_bag() -> None:
    layer = layer_of(padding_idx=3, padding_votes=False)
    assert torch.equal(layer(torch.tensor([[3, 5, 3]])), layer(torch.tensor([[5]])))
    assert layer(torch.tensor([[3, 3]])).eq(1).all()


@pytest.mark.parametrize("votes", [True, False])
def test_the_padding_row_is_never_trained(votes: bool) -> None:
    layer = layer_of(padding_idx=0, padding_votes=votes)
    optimizer = CounterSGD(layer.parameters(), lr=1.0, seed=0)
    for _ in range(5):
        layer(torch.tensor([[0, 1, 2], [0, 0, 4]])).sum().neg().backward()
        optimizer.step()
    assert not layer.weight[0].any()
    assert layer.weight[1].all()


def test_padding_that_votes_counts_in_the_mean_that_gradients_come_from() -> None:
    layer = layer_of(padding_idx=0)
    layer(torch.tensor([[0, 1, 2, 0]])).sum().backward()
    dense = gradients(layer)
    assert dense[1].eq(0.25).all()
    assert dense[0].eq(0).all()


def test_reset_parameters_clears_the_padding_row_alone() -> None:
    layer = layer_of(padding_idx=3)
    before = layer.weight.to_bool()
    layer.weight[3] = True
    layer.reset_parameters()
    assert torch.equal(layer.weight.to_bool(), before)


def test_bits_are_drawn_fair_and_follow_torchs_seed() -> None:
    torch.manual_seed(4)
    one = BinaryEmbeddingBag(num_embeddings=2000, embedding_dim=100)
    torch.manual_seed(4)
    two = BinaryEmbeddingBag(num_embeddings=2000, embedding_dim=100)
    assert torch.equal(one.weight, two.weight)
    assert abs(one.weight.float().mean().item() - 0.5) < 0.01


def test_training_and_eval_give_the_same_values() -> None:
    layer = layer_of()
    indices = torch.randint(V, (5, 3), generator=seeded(1))
    assert layer.training
    assert torch.equal(layer(indices), layer.eval()(indices))
    assert not layer.training


def test_it_is_a_public_name() -> None:
    assert packedbag.BinaryEmbeddingBag is BinaryEmbeddingBag


@pytest.mark.parametrize("seed", range(3))
def test_the_function_behind_the_layer_is_called_as_there(seed: int) -> None:
    layer, indices = layer_of(seed=seed), torch.randint(V, (5, 3), generator=seeded(seed))
    expected = reference_bag(indices, layer.weight.to_bool()).float()
    for weight in (layer.weight, layer.weight.to_bool(), BinaryEmbeddingParameter(layer.weight.to_bool())):
        assert torch.equal(BinaryEmbeddingBagForward.apply(indices, weight, True), expected)
    BinaryEmbeddingBagForward.apply(indices, layer.weight, True).sum().backward()
    assert len(layer.sink.parts) == 1
    assert not BinaryEmbeddingBagForward.apply(indices, layer.weight, False).requires_grad


# The weight ----------------------------------------------------------------------------------------------------


def test_weight_looks_like_a_bool_parameter_and_is_not_among_the_parameters() -> None:
    layer = layer_of()
    assert isinstance(layer.weight, BinaryEmbeddingParameter)
    assert layer.weight.dtype == torch.bool
    assert layer.weight.shape == (V, D)
    assert layer.weight.requires_grad is False
    assert layer.weight is layer.weight
    assert [name for name, _ in layer.named_parameters()] == ["anchor"]
    assert layer.weight.nbytes == layer.nbytes == V * 2 * 4


def test_state_dict_holds_words_and_loads_words_and_bools() -> None:
    layer = layer_of()
    state = layer.state_dict()
    assert list(state) == ["weight"]
    assert state["weight"].dtype == torch.uint32
    assert state["weight"].shape == (V, 2)
    for weight in (state["weight"], layer.weight.to_bool(), layer.weight.to_bool().float() - 0.5):
        other = layer_of(seed=9)
        other.load_state_dict({"weight": weight})
        assert torch.equal(other.weight, layer.weight)


def test_writing_to_the_weight_reaches_the_forward() -> None:
    layer, fresh = layer_of(), torch.rand(V, D, generator=seeded(7)) > 0.5
    indices = torch.randint(V, (5, 3), generator=seeded(1))
    layer.weight[:] = fresh
    assert torch.equal(layer(indices), reference_bag(indices, fresh).float())
    layer.weight = ~fresh
    assert torch.equal(layer(indices), reference_bag(indices, ~fresh).float())
    layer.weight.data = fresh
    assert torch.equal(layer(indices), reference_bag(indices, fresh).float())
    with pytest.raises(ArgumentError, match="weight is a float; it must be a bool tensor"):
        layer.weight = 3.5
    assert [name for name, _ in layer.named_parameters()] == ["anchor"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles an autograd.Function
def test_it_compiles_without_a_break() -> None:
    layer, indices = layer_of(padding_idx=0), torch.randint(V, (5, 3), generator=seeded(1))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(indices).detach()
    compiled(indices).sum().backward()
    assert torch.equal(layer.active_indices, indices)
    assert torch.equal(compiled(indices), expected)


def test_copies_moves_and_pickles_have_weights_of_their_own() -> None:
    layer = layer_of()
    layer.weight  # noqa: B018 - it is made on first use, and must not be shared
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    before = layer.weight.to_bool()
    layer.weight.logical_not_()
    for each in copies:
        assert torch.equal(each.weight.to_bool(), before)
        assert each.weight.layer is each
        each.weight[0] = True
        assert each(torch.tensor([[0]])).eq(1).all()


def test_a_table_on_the_meta_device_takes_a_checkpoint() -> None:
    with torch.device("meta"):
        layer = BinaryEmbeddingBag(num_embeddings=V, embedding_dim=D, padding_idx=0)
    assert layer.weight.is_meta
    assert "BinaryEmbeddingParameter" in repr(layer.weight)
    source = layer_of(padding_idx=0)
    layer.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(layer.weight, source.weight)
    layer(torch.tensor([[1, 2]])).sum().backward()
    assert layer.active_indices.tolist() == [[1, 2]]


def test_extra_arguments_are_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"BinaryEmbeddingBag ignores 7, sparse=True: it takes num_embeddings"):
        BinaryEmbeddingBag(7, num_embeddings=V, embedding_dim=D, sparse=True)


def test_repr_shows_what_it_is() -> None:
    shown = repr(layer_of(padding_idx=-1, padding_votes=False, output_dtype=torch.int64))
    assert shown == ("BinaryEmbeddingBag(30, 40, padding_idx=29, padding_votes=False, output_dtype=torch.int64)")


# Its defects, by their numbers in docs/adapter.md --------------------------------------------------------------


def test_defect_1_it_is_made_on_stock_torch_and_backward_works() -> None:
    layer = layer_of()
    layer(torch.tensor([[1, 2]])).sum().backward()
    assert layer.anchor.grad is not None


@pytest.mark.parametrize(("padding_idx", "row"), [(5, 5), (V - 1, V - 1), (-1, V - 1), (-V, 0), (0, 0)])
def test_defect_2_any_padding_idx_of_the_table_is_taken(padding_idx: int, row: int) -> None:
    layer = layer_of(padding_idx=padding_idx)
    assert layer.padding_idx == row
    assert not layer.weight[row].any()
    assert layer.weight.count_nonzero(1).eq(0).sum() == 1


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_defect_3_gradients_equal_finite_differences_of_the_straight_through_surrogate(data: st.DataObject) -> None:
    bags, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    rows, dim = 6, data.draw(st.sampled_from([1, 33]))
    layer = layer_of(rows, dim, data.draw(st.integers(0, 9)))
    indices = torch.randint(rows, (bags, length), generator=seeded(data.draw(st.integers(0, 99))))
    toward = torch.randn(bags, dim, generator=seeded(2), dtype=torch.float64)
    (layer(indices) * toward.float()).sum().backward()
    found = gradients(layer)

    def surrogate(weight: torch.Tensor) -> float:  # the mean of the bag stands for its sign
        return float((weight[indices].mean(1) * toward).sum())

    signs = layer.weight.to_bool().to(torch.float64) * 2 - 1
    for row in range(rows):
        for column in range(0, dim, 8):
            moved = signs.clone()
            moved[row, column] += 0.5
            difference = (surrogate(moved) - surrogate(signs)) / 0.5
            assert found[row, column].item() == pytest.approx(difference, abs=1e-5)


def test_defect_4_backward_makes_nothing_of_the_size_of_the_table() -> None:
    layer = layer_of(100_000, 64)
    layer(torch.tensor([[1, 2], [3, 4]])).sum().backward()
    (part,) = layer.sink.parts
    assert part.grad.shape == (2, 64)
    assert part.rows.tolist() == [1, 2, 3, 4]
    assert layer.weight.grad is None


def test_defect_8_two_backward_passes_add_their_gradients_and_their_rows() -> None:
    layer = layer_of()
    (layer(torch.tensor([[1, 2]])) * 3).sum().backward()
    (layer(torch.tensor([[2, 7]])) * -1).sum().backward()
    dense = gradients(layer)
    assert dense[1].eq(1.5).all()
    assert dense[2].eq(1.0).all()
    assert dense[7].eq(-0.5).all()
    assert layer.weight.active_indices.tolist() == [[1, 2], [2, 7]]


def test_defect_9_active_indices_belong_to_the_layer_and_end_with_the_step() -> None:
    one, two = layer_of(), layer_of()
    indices = torch.tensor([[1, 2, 3], [4, 5, 6]])
    one(indices).sum().backward()
    assert torch.equal(one.weight.active_indices, indices)
    assert two.weight.active_indices.shape == (0,)
    one(torch.tensor([[9]])).sum().backward()
    assert one.weight.active_indices.tolist() == [1, 2, 3, 4, 5, 6, 9]
    CounterSGD(packed_parameters(one), lr=0.1).step()
    assert one.weight.active_indices.shape == (0,)


def test_defect_10_strided_indices_eval_mode_and_offsets_work() -> None:
    layer = layer_of().eval()
    indices = torch.randint(V, (3, 8), generator=seeded(1)).t()
    assert not indices.is_contiguous()
    layer(indices).sum().backward()
    assert layer.active_indices.shape == (8, 3)
    flat, offsets = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 1])
    found = layer(flat, offsets)
    assert torch.equal(found[0], layer(flat[:1].unsqueeze(0))[0])
    assert found[1].eq(1).all()
    assert torch.equal(found[2], layer(flat[1:].unsqueeze(0))[0])


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_idx", [V, -V - 1])
def test_a_padding_row_outside_the_table_is_refused(padding_idx: int) -> None:
    with pytest.raises(ArgumentError, match=rf"padding_idx is {padding_idx}; it must be in -30\.\.29"):
        layer_of(padding_idx=padding_idx)


def test_float_indices_are_refused_with_what_to_pass() -> None:
    with pytest.raises(DtypeError, match=r"indices has dtype float32; it must be int32 or int64.*long\(\)"):
        layer_of()(torch.tensor([[1.0]]))


def test_indices_outside_the_table_are_refused() -> None:
    for index in (V, -1):
        with pytest.raises(IndexRangeError, match=rf"indices\[1\] is {index}; the table has rows 0\.\.29"):
            settled(lambda bad=index: layer_of()(torch.tensor([[1, bad]])))


def test_indices_without_bags_are_refused_with_what_to_pass() -> None:
    with pytest.raises(ArgumentError, match=r"offsets is None with 1-D indices; .* Or pass \(B, L\) indices"):
        layer_of()(torch.tensor([1, 2]))


def test_an_output_dtype_that_holds_no_sign_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"output_dtype is torch\.uint8; it must be float32"):
        layer_of(output_dtype=torch.uint8)
    with pytest.raises(ArgumentError, match=r"output_dtype is 'float32'; it must be float32"):
        layer_of(output_dtype="float32")


@pytest.mark.parametrize("rows", [2.5, "9", None])
def test_a_number_of_rows_that_is_no_integer_is_refused(rows: object) -> None:
    with pytest.raises(ArgumentError, match=r"num_embeddings is .*; it must be an integer"):
        BinaryEmbeddingBag(num_embeddings=rows, embedding_dim=8)


@pytest.mark.parametrize("shape", [(V, D + 1), (V - 1, D), (V,), (D, V), (1, D), ()])
def test_a_bool_weight_of_another_shape_is_refused_and_changes_nothing(shape: tuple[int, ...]) -> None:
    layer = layer_of()
    before = layer.weight.to_bool()
    with pytest.raises(RuntimeError, match=r"weight has shape"):
        layer.load_state_dict({"weight": torch.ones(shape, dtype=torch.bool)})
    with pytest.raises(ShapeError):
        layer.weight = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(DtypeError, match="signs of floats"):
        layer.weight = -torch.ones(V, D)
    assert torch.equal(layer.weight.to_bool(), before)


def test_no_warning_is_given_in_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = layer_of()
        optimizer = CounterSGD(layer.parameters(), lr=0.1)
        for _ in range(6):
            layer(torch.tensor([[1, 2]])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
