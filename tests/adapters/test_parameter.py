"""`BinaryEmbeddingParameter` against a plain bool tensor: the same operator on both, the same values after it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter, sparse_update_embedding_qweight
from packedbag.adapters.bitorch_engine import packed_bools as packed_bools_module
from packedbag.adapters.bitorch_engine.bit_rows import BitRows
from packedbag.core.errors import ArgumentError, DtypeError, PackedBagError, ShapeError
from tests.devices import seeded

DIMS = (1, 7, 31, 32, 33, 64, 65, 100, 128)


def bools(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed)) > 0.5


def both(rows: int = 9, dim: int = 100, seed: int = 0) -> tuple[torch.Tensor, BinaryEmbeddingParameter]:
    """Return the same bits as a plain tensor and packed."""
    plain = bools(rows, dim, seed=seed)
    return plain, BinaryEmbeddingParameter(plain)


def values(result: Any) -> Any:
    """Return what an operator gave, packed or not, in a form to compare."""
    if isinstance(result, BinaryEmbeddingParameter):
        assert result.dtype == torch.bool
        return result.to_bool()
    if isinstance(result, (list, tuple)):
        return [values(each) for each in result]
    return result


def agree(expected: Any, found: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert torch.equal(expected, found)
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            agree(a, b)
    else:
        assert expected == found


def tails_are_zero(weight: BinaryEmbeddingParameter) -> bool:
    words, dim = weight.bits.words, weight.bits.embedding_dim
    return dim % 32 == 0 or not bool((words[:, -1] >> (dim % 32) & (1 << (32 - dim % 32)) - 1).any())


@st.composite
def slices(draw: Any, size: int) -> slice:
    ends = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    return slice(draw(ends), draw(ends), draw(st.sampled_from([None, 1, 2, 3, 40])))


@st.composite
def indices(draw: Any, rows: int, dim: int) -> Any:
    """Return an index that torch takes, of every kind."""
    some = st.lists(st.integers(-rows, rows - 1), max_size=6)
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return draw(st.integers(-rows, rows - 1))
    if kind == 1:
        return draw(slices(rows))
    if kind == 2:
        return draw(slices(rows)), draw(slices(dim))
    if kind == 3:
        return draw(st.integers(-rows, rows - 1)), draw(slices(dim))
    if kind == 4:
        return draw(slices(rows)), draw(st.integers(-dim, dim - 1))
    if kind == 5:
        return draw(st.integers(-rows, rows - 1)), draw(st.integers(-dim, dim - 1))
    if kind == 6:
        return torch.tensor(draw(some), dtype=torch.int64)
    if kind == 7:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    if kind == 8:
        return bools(rows, dim, seed=draw(st.integers(0, 9)))
    if kind == 9:
        columns = draw(st.lists(st.integers(-dim, dim - 1), max_size=4, unique_by=lambda c: c % dim))
        return draw(slices(rows)), torch.tensor(columns, dtype=torch.int64)
    if kind == 10:
        pairs = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, dim - 1)), max_size=5, unique=True))
        return (
            torch.tensor([row for row, _ in pairs], dtype=torch.int64),
            torch.tensor([column for _, column in pairs], dtype=torch.int64),
        )
    return torch.tensor(draw(some), dtype=torch.int64), draw(slices(dim))


@st.composite
def tables(draw: Any) -> tuple[torch.Tensor, BinaryEmbeddingParameter]:
    return both(draw(st.integers(1, 12)), draw(st.sampled_from(DIMS)), draw(st.integers(0, 99)))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables into pieces of a few rows, so that tests cross their borders."""
    monkeypatch.setattr("packedbag.adapters.bitorch_engine.bit_rows.CHUNK_WEIGHTS", 300)


@given(data=st.data())
def test_every_index_reads_the_same_values(data: st.DataObject) -> None:
    plain, weight = data.draw(tables())
    index = data.draw(indices(*plain.shape))
    agree(plain[index], values(weight[index]))


@given(data=st.data(), form=st.sampled_from(["number", "tensor", "row", "packed"]))
def test_assignment_through_every_index_reaches_the_table_and_nothing_else(data: st.DataObject, form: str) -> None:
    plain, weight = data.draw(tables())
    index = data.draw(indices(*plain.shape))
    wanted = plain[index].shape
    fresh = bools(*wanted, seed=5)
    if (
        isinstance(index, torch.Tensor)
        and index.dtype == torch.int64
        and len(set((index % len(plain)).tolist())) < len(index)
    ):
        form = "row"  # which of several values a row gets is not defined; one for all is
    if form == "number":
        value: Any = data.draw(st.booleans())
    elif form == "row" and len(wanted):
        value = bools(wanted[-1], seed=6)
    elif form == "packed" and len(wanted) == 2 and wanted[1]:
        value = BinaryEmbeddingParameter(fresh)
    else:
        value = fresh
    weight[index] = value
    plain[index] = values(value)
    agree(plain, weight.to_bool())
    assert tails_are_zero(weight)


@given(data=st.data(), name=st.sampled_from(["and", "or", "xor"]))
def test_combining_in_place_through_every_index_reaches_the_table(data: st.DataObject, name: str) -> None:
    plain, weight = data.draw(tables())
    index = data.draw(indices(*plain.shape))
    if isinstance(index, torch.Tensor) and index.dtype == torch.int64:
        index = index.remainder(len(plain)).unique()
    value = bools(*plain[index].shape, seed=5)
    if name == "and":
        weight[index] &= value
        plain[index] &= value
    elif name == "or":
        weight[index] |= value
        plain[index] |= value
    else:
        weight[index] ^= value
        plain[index] ^= value
    agree(plain, weight.to_bool())
    assert tails_are_zero(weight)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda w: w,
    "row": lambda w: w[3],
    "rows": lambda w: w[2:7],
    "every second row": lambda w: w[1::2],
    "column": lambda w: w[:, 5],
    "columns": lambda w: w[:, 30:70],
    "words": lambda w: w[:, 32:64],
    "every third column": lambda w: w[:, 1::3],
    "block": lambda w: w[1:4, 33:40],
    "slice of a slice": lambda w: w[1:8][::2, 10:90][:, 5:50:7],
    "value": lambda w: w[2, 40],
    "detached": lambda w: w.detach()[1:3],
    "data": lambda w: w.data[4],
    "unbound": lambda w: w.unbind(0)[4],
    "split": lambda w: w.split(4)[1],
    "split columns": lambda w: w.split([30, 40, 30], 1)[1],
    "chunk": lambda w: w.chunk(2)[1],
    "narrow": lambda w: w.narrow(0, 2, 3),
    "nothing": lambda w: w[5:5],
    "no column": lambda w: w[:, 5:5],
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "fill": lambda v: v.fill_(True),
    "zero": lambda v: v.zero_(),
    "xor": lambda v: v.bitwise_xor_(bools(*v.shape, seed=3)),
    "or": lambda v: v.logical_or_(bools(*v.shape, seed=3)),
    "and": lambda v: v.__iand__(bools(*v.shape, seed=3)),
    "xor with a number": lambda v: v.__ixor__(True),
    "not": lambda v: v.logical_not_(),
    "bitwise not": lambda v: v.bitwise_not_(),
    "copy": lambda v: v.copy_(bools(*v.shape, seed=4)),
    "copy of integers": lambda v: v.copy_(bools(*v.shape, seed=4).long() * 3),
    "set where": lambda v: v.masked_fill_(bools(*v.shape, seed=7), True),
    "clear where": lambda v: v.masked_fill_(bools(*v.shape, seed=7), False),
    "eq": lambda v: v.eq_(bools(*v.shape, seed=8)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_change_of_a_view_reaches_the_table_and_nothing_else(
    view: Callable[[Any], Any], change: Callable[[Any], Any]
) -> None:
    plain, weight = both()
    agree(values(view(plain)), values(view(weight)))
    result, expected = change(view(weight)), change(view(plain))
    agree(expected, values(result))
    agree(plain, weight.to_bool())
    assert tails_are_zero(weight)


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "not": lambda w: ~w,
    "logical not": lambda w: w.logical_not(),
    "and": lambda w: w & bools(9, 100, seed=1),
    "or with a row": lambda w: w | bools(100, seed=1),
    "xor with a column": lambda w: w ^ bools(9, 1, seed=1),
    "xor with a number": lambda w: w ^ True,
    "and from the left": lambda w: bools(9, 100, seed=1) & w,
    "and with more": lambda w: w & bools(2, 9, 100, seed=1),
    "xor with integers": lambda w: w ^ torch.arange(100),
    "equal to": lambda w: w == bools(9, 100, seed=1),
    "not equal to": lambda w: w != bools(100, seed=1),
    "equal to one": lambda w: w == 1,
    "equal to itself": lambda w: w == w.clone(),
    "logical xor": lambda w: w.logical_xor(bools(9, 100, seed=1)),
    "times": lambda w: w * bools(9, 100, seed=1),
    "masked fill": lambda w: w.masked_fill(bools(9, 100, seed=1), True),
    "masked clear": lambda w: w.masked_fill(bools(100, seed=1), False),
    "count": lambda w: w.count_nonzero(),
    "count of rows": lambda w: w.count_nonzero(dim=1),
    "count of columns": lambda w: w.count_nonzero(0),
    "sum": lambda w: w.sum(),
    "sum of columns": lambda w: w.sum(0),
    "sum of rows": lambda w: w.sum(-1, keepdim=True),
    "sum of both": lambda w: w.sum((0, 1)),
    "sum as floats": lambda w: w.sum(1, dtype=torch.float32),
    "any": lambda w: w.any(),
    "any of rows": lambda w: w.any(1),
    "all": lambda w: w.all(),
    "all of columns": lambda w: w.all(0, keepdim=True),
    "float": lambda w: w.float(),
    "float mean": lambda w: w.float().mean(0),
    "long": lambda w: w.long(),
    "bool": lambda w: w.bool(),
    "clone": lambda w: w.clone(),
    "cpu": lambda w: w.cpu(),
    "contiguous": lambda w: w.contiguous(),
    "copy": lambda w: w.to("cpu", copy=True),
    "zeros like": torch.zeros_like,
    "ones like": torch.ones_like,
    "zeros like, floats": lambda w: torch.zeros_like(w, dtype=torch.float32),
    "full like": lambda w: torch.full_like(w, True),
    "new zeros": lambda w: w.new_zeros(3),
    "index select": lambda w: w.index_select(0, torch.tensor([3, 3, 0])),
    "index select of columns": lambda w: w.index_select(1, torch.tensor([3, 3, 0])),
    "embedding": lambda w: torch.nn.functional.embedding(torch.tensor([[1, 2], [8, 1]]), w),
    "rows of two dimensions": lambda w: w[torch.tensor([[1, 2], [8, 1]])],
    "rows in a list": lambda w: w[[1, -2]],
    "rows of a mask that is packed": lambda w: w[w[:, 3]],
    "values of a mask that is packed": lambda w: w[w],
    "where": lambda w: torch.where(w, 1, -1),
    "cat": lambda w: torch.cat([w, w[:2]]),
    "stack": lambda w: torch.stack([w[0], w[1]]),
    "nonzero": lambda w: w.nonzero(),
    "gather": lambda w: w.gather(1, torch.tensor([[3], [4]])),
    "flip": lambda w: w.flip(0),
    "item": lambda w: w[3, 4].item(),
    "bool of a value": lambda w: bool(w[3, 4]),
    "equal": lambda w: torch.equal(w, w.clone()),
    "equal to plain": lambda w: torch.equal(w, bools(9, 100)),
    "plain equal to it": lambda w: torch.equal(bools(9, 100, seed=2), w),
    "equal of other shapes": lambda w: torch.equal(w, bools(9, 99)),
    "list": lambda w: w.tolist(),
    "list of a row": lambda w: w[3].tolist(),
    "numpy": lambda w: torch.from_numpy(w.numpy()),
    "asarray": lambda w: torch.from_numpy(np.asarray(w)),
    "asarray of integers": lambda w: torch.from_numpy(np.asarray(w, dtype=np.int8)),
    "length": len,
    "iteration": lambda w: [row.clone() for row in w],
    "shape": lambda w: [w.shape, w.size(), w.size(1), w.dim(), w.ndim, w.numel(), w.dtype, w.device.type],
    "flags": lambda w: [w.requires_grad, w.is_floating_point(), w.is_contiguous(), w.is_sparse, w.grad],
    "deepcopy": copy.deepcopy,
    "into a plain tensor": lambda w: torch.zeros(9, 100, dtype=torch.bool).copy_(w),
    "into plain floats": lambda w: torch.zeros(9, 100).copy_(w),
    "rows into a plain tensor": lambda w: torch.zeros(9, 100, dtype=torch.bool).copy_(w[3]),
    "plain xor in place": lambda w: bools(9, 100, seed=2).__ixor__(w),
    "plain masked fill": lambda w: torch.zeros(9, 100).masked_fill_(w, 3.0),
    "plain index put": lambda w: torch.zeros(9, 100).index_put_((w,), torch.tensor(1.0)),
    "same view": lambda w: w.view(9, 100).clone(),
    "same shape": lambda w: w.reshape(9, -1).clone(),
    "expand as": lambda w: w.expand_as(bools(9, 100)).clone(),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_gives_what_it_gives_for_bools(operator: Callable[[Any], Any]) -> None:
    plain, weight = both()
    agree(values(operator(plain)), values(operator(weight)))
    agree(bools(9, 100), weight.to_bool())


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "index fill of rows": lambda w: w.index_fill_(0, torch.tensor([1, 4]), True),
    "index fill of columns": lambda w: w.index_fill_(1, torch.tensor([1, 40]), True),
    "index copy": lambda w: w.index_copy_(0, torch.tensor([1, 4]), bools(2, 100, seed=1)),
    "index put": lambda w: w.index_put_((torch.tensor([1, 4]),), bools(2, 100, seed=1)),
    "rows of two dimensions": lambda w: w.__setitem__(torch.tensor([[1, 2], [0, 4]]), bools(2, 100, seed=1)),
    "masked scatter": lambda w: w.masked_scatter_(bools(9, 100, seed=1), bools(900, seed=2)),
    "scatter": lambda w: w.scatter_(1, torch.tensor([[3], [4]]), True),
    "xor with a packed table": lambda w: w.__ixor__(
        type(w)(bools(9, 100, seed=1)) if hasattr(w, "bits") else bools(9, 100, seed=1)
    ),
    "and with a row": lambda w: w.__iand__(bools(100, seed=1)),
    "or with a column": lambda w: w.__ior__(bools(9, 1, seed=1)),
    "all of it": lambda w: w.__setitem__(slice(None), bools(100, seed=1)),
    "dots": lambda w: w.__setitem__(..., bools(9, 100, seed=1)),
    "numbers": lambda w: w.__setitem__(3, 1),
    "its own rows": lambda w: w.__setitem__(slice(0, 4), w[5:9]),
    "bernoulli of one": lambda w: w.bernoulli_(1.0),
    "random of one": lambda w: w.random_(1, 2),
}


@pytest.mark.parametrize("operator", IN_PLACE.values(), ids=IN_PLACE)
def test_an_operator_in_place_leaves_what_it_leaves_in_bools(operator: Callable[[Any], Any]) -> None:
    plain, weight = both()
    operator(plain)
    operator(weight)
    agree(plain, weight.to_bool())
    assert tails_are_zero(weight)


def test_combinations_of_whole_tables_stay_packed() -> None:
    _, weight = both()
    for result in (
        weight & weight,
        weight | True,
        ~weight,
        weight == weight,
        weight.clone(),
        weight[2:5] ^ weight[3:6],
    ):
        assert isinstance(result, BinaryEmbeddingParameter)
        assert result.nbytes == len(result) * 16


def test_views_share_memory_and_copies_do_not() -> None:
    plain, weight = both()
    taken, copied = weight[2:5], weight.clone()
    weight.zero_()
    assert not taken.any()
    agree(plain, copied.to_bool())


def test_random_bits_are_fair_and_follow_the_seed() -> None:
    weight = BinaryEmbeddingParameter(torch.zeros(2000, 100, dtype=torch.bool))
    weight.random_(generator=seeded(3))
    first = weight.to_bool()
    assert abs(first.float().mean().item() - 0.5) < 0.01
    weight.random_(generator=seeded(3))
    agree(first, weight.to_bool())


REFUSED: dict[str, Callable[[Any], Any]] = {
    "transpose": lambda w: w.t(),
    "flat view": lambda w: w.view(-1),
    "a dimension more": lambda w: w[None],
    "expand": lambda w: w.expand(2, 9, 100),
    "another dtype": lambda w: w.view(torch.uint8),
}


@pytest.mark.parametrize("operator", REFUSED.values(), ids=REFUSED)
def test_a_view_that_words_cannot_give_is_refused_since_writing_to_it_would_be_lost(
    operator: Callable[[Any], Any],
) -> None:
    with pytest.raises(ArgumentError, match=r"to_bool\(\)"):
        operator(both()[1])


@pytest.mark.parametrize("operator", [lambda w: w.numpy(), lambda w: w.tolist(), lambda w: w.float(), np.asarray])
def test_more_than_64_mb_of_bools_are_made_only_when_asked_for(
    operator: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packed_bools_module.LIMIT == 64 * 2**20
    plain, weight = both()
    monkeypatch.setattr(packed_bools_module, "LIMIT", 899)
    with pytest.raises(ArgumentError, match=r"900 bytes as bools.*at most 899.*to_bool\(\)"):
        operator(weight)
    agree(plain, weight.to_bool())
    operator(weight[:8])


def test_what_works_in_pieces_never_makes_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    read = BitRows.read

    def watched(self: BitRows, rows: Any = None) -> torch.Tensor:
        nonlocal largest
        made = read(self, rows)
        largest = max(largest, made.numel())
        return made

    plain, weight = both(200, 100)
    monkeypatch.setattr(BitRows, "read", watched)
    monkeypatch.setattr(packed_bools_module, "LIMIT", 1000)
    other = bools(200, 100, seed=1)
    for operate in (
        lambda w: [w.sum(), w.sum(0), w.sum(1), w.any(), w.all(1), w.count_nonzero()],
        lambda w: [w & other, w ^ w, ~w, w == other, torch.equal(w, other), w.masked_fill(other, True)],
        lambda w: [w.clone(), w.copy_(other), w.masked_fill_(other, True), w.logical_not_()],
        lambda w: [w.__setitem__(other, False), w[:, 3:50].logical_not_(), w[:, 3:50].sum(0)],
    ):
        largest = 0
        found = operate(weight)
        assert largest <= 300
        agree(values(operate(plain)), values(found))
    agree(plain, weight.to_bool())


def test_repr_looks_like_torchs_and_says_what_it_takes() -> None:
    _, weight = both(2, 3)
    shown = repr(weight)
    assert shown.startswith("BinaryEmbeddingParameter([[")
    assert shown.count("\n") == 1
    assert shown.endswith("packed in 8 bytes)")


def test_repr_of_a_large_table_reads_only_the_rows_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weight = both(5000, 100)
    monkeypatch.setattr(packed_bools_module, "LIMIT", 1000)
    lines = repr(weight).split("\n")
    assert len(lines) == 7
    assert lines[3].strip() == "...,"
    assert lines[-1].endswith("size=(5000, 100), packed in 80000 bytes)")
    indent = len("BinaryEmbeddingParameter") - len("tensor")
    expected = repr(plain).removesuffix(")").split("\n")
    assert [line[indent:] for line in lines[1:6]] == expected[1:6]


def test_indices_out_of_range_are_refused() -> None:
    _, weight = both()
    for index in (9, -10, (0, 100), torch.tensor([9]), (torch.tensor([0]), torch.tensor([100]))):
        with pytest.raises(IndexError):
            weight[index]
    with pytest.raises(IndexError):
        weight[bools(8)]


def test_values_of_another_shape_are_refused_and_nothing_changes() -> None:
    plain, weight = both()
    for index, shape in ((3, (99,)), (slice(0, 3), (2, 100)), (torch.tensor([1, 2]), (3, 100)), (slice(None), (9, 99))):
        with pytest.raises((ShapeError, RuntimeError)):
            weight[index] = bools(*shape)
    agree(plain, weight.to_bool())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (torch.zeros(2, 3), DtypeError, "data has dtype float32; it must be bool. Pass weight >= 0"),
        (torch.zeros(3, dtype=torch.bool), ShapeError, r"data has shape \(3\); it must be \(V, D\)"),
        (None, ArgumentError, "data is a NoneType; it must be a bool tensor"),
    ],
)
def test_other_data_than_a_bool_table_is_refused(data: Any, error: type[PackedBagError], says: str) -> None:
    with pytest.raises(error, match=says):
        BinaryEmbeddingParameter(data)


def saved(thing: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def test_it_is_pickled_and_saved_packed() -> None:
    plain, weight = both(1000, 128)
    agree(plain, pickle.loads(pickle.dumps(weight)).to_bool())
    file = saved({"weight": weight})
    assert len(file.getvalue()) < 20_000
    agree(plain, torch.load(file, weights_only=True)["weight"].to_bool())
    assert len(saved(weight[:10]).getvalue()) < 3_000
    agree(plain[3], torch.load(saved(weight[3]), weights_only=True))
    agree(plain[2:9, 3:50], torch.load(saved(weight[2:9, 3:50]), weights_only=True).to_bool())


@pytest.mark.parametrize("order", ["import packedbag, torch", "import torch, packedbag"])
def test_importing_packedbag_is_enough_to_load_it_with_weights_only(order: str, tmp_path: Any) -> None:
    _, weight = both()
    torch.save(weight, tmp_path / "weight.pt")
    probe = f"{order}\nw = torch.load({str(tmp_path / 'weight.pt')!r}, weights_only=True)\nprint(int(w.sum()))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(weight.sum())


def test_active_indices_belong_to_the_instance() -> None:
    _, one = both()
    _, two = both()
    assert one.active_indices.shape == (0,)
    one.active_indices = torch.tensor([3])
    assert two.active_indices.shape == (0,)
    assert BinaryEmbeddingParameter(bools(2, 3), True, torch.tensor([1])).active_indices.tolist() == [1]


@pytest.mark.parametrize("form", ["table", "active rows", "packed table"])
def test_the_sparse_update_changes_the_active_rows_alone(form: str) -> None:
    plain, weight = both()
    fresh, active = bools(9, 100, seed=1), torch.tensor([[1, 4], [4, 8]])
    bits = {"table": fresh, "active rows": fresh[active], "packed table": BinaryEmbeddingParameter(fresh)}[form]
    sparse_update_embedding_qweight(weight, bits, active)
    plain[active] = fresh[active]
    agree(plain, weight.to_bool())
    weight.active_indices = torch.tensor([0])
    sparse_update_embedding_qweight(weight, fresh)
    plain[0] = fresh[0]
    agree(plain, weight.to_bool())


def test_the_sparse_update_refuses_bits_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"bits has shape \(3, 100\); it must be \(9, 100\), or \(2, 100\)"):
        sparse_update_embedding_qweight(both()[1], bools(3, 100), torch.tensor([1, 2]))
