"""Rare uses of `BinaryEmbeddingParameter` give what they give for a plain bool tensor, or are refused as there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter
from packedbag.core.errors import ArgumentError, DtypeError, ShapeError
from tests.adapters.bools import agree, bools, both, tails_are_zero, values

pytestmark = pytest.mark.usefixtures("small_pieces")


def into(operator: Callable[..., Any], *sizes: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """Return what ``operator`` leaves in a tensor of ones that it gets as ``out``."""
    out = torch.ones(sizes, dtype=dtype)
    operator(out)
    return out


READS: dict[str, Callable[[Any], Any]] = {
    "rows into another tensor": lambda w: into(
        lambda out: torch.index_select(w, 0, torch.tensor([3, 1]), out=out), 2, 100
    ),
    "clone into another tensor": lambda w: into(lambda out: torch.ops.aten.clone.out(w, out=out), 9, 100),
    "any of no dimension": lambda w: torch.any(w, dim=()),
    "all of no dimension": lambda w: torch.all(w, dim=()),
    "a plain tensor of integers": lambda w: torch.full((9, 100), 2).logical_and_(w),
    "a plain tensor of more dimensions": lambda w: torch.zeros(9, 9, 100, dtype=torch.bool).copy_(w),
    "rows of a mask of bytes": lambda w: w[torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 1], dtype=torch.uint8)],
    "many pairs": lambda w: w[torch.arange(9).repeat(30), torch.arange(270) % 100],
    "pairs of two dimensions": lambda w: w[torch.arange(9).unsqueeze(1), torch.arange(20)],
    "splits of nothing": lambda w: [part.clone() for part in w[:0].split(2)],
    "detached in place": lambda w: w.detach_(),
    "values of a plain tensor": lambda w: torch.arange(900).reshape(9, 100)[w],
    "rows of a plain tensor": lambda w: torch.arange(9)[w[:, 3]],
    "an array by DLPack": lambda w: torch.from_numpy(np.from_dlpack(w.cpu()).copy()),
    "a tensor by DLPack": lambda w: torch.from_dlpack(w[:, 3:50].clone()),
    "columns of strides": lambda w: w[:, 3::40].clone(),
}
EMPTY: dict[str, Callable[[Any], Any]] = {
    "and": lambda w: w & bools(*w.shape, seed=1),
    "or with a row": lambda w: w | bools(w.shape[1], seed=1),
    "equal to": lambda w: w == bools(*w.shape, seed=1),
    "masked fill": lambda w: w.masked_fill(bools(*w.shape, seed=1), True),
    "clone": lambda w: w.clone(),
    "not": lambda w: ~w,
    "deepcopy": copy.deepcopy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "copy": lambda w: w.to("cpu", copy=True),
    "copy_": lambda w: w.clone().copy_(bools(*w.shape)),
    "values of a mask": lambda w: w[bools(*w.shape)],
    "zero": lambda w: torch.zeros_like(w).fill_(True),
    "count": lambda w: w.count_nonzero(),
}
WRITES: dict[str, Callable[[Any], Any]] = {
    "and with floats": lambda w: w.logical_and_(bools(9, 100, seed=1).float() * 0.5),
    "or with a number": lambda w: w[:, 3:50].logical_or_(torch.tensor(2)),
    "xor with integers": lambda w: w.logical_xor_(bools(9, 100, seed=1).int() * 2),
    "a chance for each bit": lambda w: w.bernoulli_(bools(9, 100, seed=1).float()),
    "a chance for each of a row": lambda w: w[3].bernoulli_(bools(100, seed=1).float()),
    "zeros of a list": lambda w: torch._foreach_zero_([w]),
    "copies of a list": lambda w: torch._foreach_copy_([w[1:3], w[5]], [bools(2, 100, seed=1), bools(100, seed=2)]),
    "rows of a mask of bytes": lambda w: w.__setitem__(
        torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 1], dtype=torch.uint8), bools(3, 100, seed=1)
    ),
    "many pairs": lambda w: w.__setitem__((torch.arange(9).repeat(11), torch.arange(99)), bools(99, seed=1)),
    "pairs that share values": lambda w: w.__setitem__(
        (torch.arange(9).unsqueeze(1), torch.arange(20)), bools(9, 1, seed=1)
    ),
    "columns of many rows": lambda w: w[:, 5:80].__setitem__(torch.arange(8, -1, -1), bools(9, 75, seed=1)),
    "columns from other columns": lambda w: w[:, 40:90].copy_(w[:, 3:53].clone()),
    "xor of columns with others": lambda w: w[:, 40:90].bitwise_xor_(w[:, 3:53].clone()),
    "columns where others are set": lambda w: w[:, 40:90].masked_fill_(w[:, 3:53].clone(), False),
    "where others are set": lambda w: w.masked_fill_(w.clone(), False),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("operator", READS.values(), ids=READS)
def test_what_is_read_is_what_bools_give(operator: Callable[[Any], Any]) -> None:
    plain, weight = both()
    agree(values(operator(plain)), values(operator(weight)))


@pytest.mark.parametrize("shape", ["rows", "columns", "both"])
@pytest.mark.parametrize("operator", EMPTY.values(), ids=EMPTY)
def test_views_of_nothing_are_tensors_like_others(operator: Callable[[Any], Any], shape: str) -> None:
    rows, columns = slice(5, None if shape == "columns" else 5), slice(5, None if shape == "rows" else 5)
    plain, weight = both()
    agree(values(operator(plain[rows, columns])), values(operator(weight[rows, columns])))


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("operator", WRITES.values(), ids=WRITES)
def test_what_is_written_is_what_bools_hold_then(operator: Callable[[Any], Any]) -> None:
    plain, weight = both()
    operator(plain)
    operator(weight)
    agree(plain, weight.to_bool())
    assert tails_are_zero(weight)


MASK = bools(9, 100, seed=1)
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "a negative row of an embedding": (lambda w: torch.nn.functional.embedding(torch.tensor([-1]), w), IndexError),
    "a negative row to select": (lambda w: w.index_select(0, torch.tensor([-1])), IndexError),
    "rows of two dimensions to select": (lambda w: w.index_select(0, torch.tensor([[1]])), IndexError),
    "an embedding of a row": (lambda w: torch.nn.functional.embedding(torch.tensor([1]), w[3]), RuntimeError),
    "one dimension twice": (lambda w: w.sum((0, 0)), RuntimeError),
    "splits of another sum": (lambda w: w.split([1, 99]), RuntimeError),
    "values for more than the mask": (lambda w: w.__setitem__(MASK, bools(int(MASK.sum()) + 5)), ShapeError),
    "values for less than the mask": (lambda w: w.__setitem__(MASK, bools(int(MASK.sum()) - 1)), ShapeError),
    "rows of floats": (lambda w: w.__setitem__(torch.tensor([1, 2]), -torch.ones(100)), DtypeError),
    "rows of integers": (lambda w: w.index_put_((torch.tensor([1]),), torch.tensor(1)), DtypeError),
    "one row for all that are copied": (
        lambda w: w.index_copy_(0, torch.tensor([1, 2]), torch.ones(1, 100, dtype=torch.bool)),
        ShapeError,
    ),
    "a mask of bytes": (lambda w: w.masked_fill_(MASK.byte(), True), RuntimeError),
    "rows that overlap": (lambda w: w[1:].masked_fill_(w[:-1], False), RuntimeError),
}


@pytest.mark.parametrize(("operator", "error"), REFUSED.values(), ids=REFUSED)
def test_what_bools_refuse_is_refused_and_changes_nothing(
    operator: Callable[[Any], Any], error: type[Exception]
) -> None:
    plain, weight = both()
    with pytest.raises((RuntimeError, IndexError)):
        operator(plain.clone())
    with pytest.raises(error):
        operator(weight)
    agree(plain, weight.to_bool())


def test_changing_the_shape_in_place_is_refused_since_it_would_move_bits_of_the_table() -> None:
    plain, weight = both(40, 40)
    for change in ("t_", "squeeze_"):
        with pytest.raises(ArgumentError, match="view that its bits cannot give"):
            getattr(weight[3:20, 5:22], change)()
    agree(plain, weight.to_bool())


def test_few_bools_of_a_large_table_never_make_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from packedbag.adapters.bitorch_engine import bit_rows

    plain, weight = both(400, 100)
    largest, unpack = 0, bit_rows.unpack

    def counting(words: torch.Tensor, columns: int) -> torch.Tensor:
        nonlocal largest
        bits: torch.Tensor = unpack(words, columns)
        largest = max(largest, bits.numel())
        return bits

    monkeypatch.setattr(bit_rows, "unpack", counting)
    every, columns, wide = torch.arange(400), torch.arange(400) % 100, bools(400, 50, seed=2)
    changes: list[Callable[[Any, Any], Any]] = [
        lambda w, other: w.__setitem__((every, columns), True),
        lambda w, other: w[:, 3:53].copy_(other),
        lambda w, other: w[:, 3:53].bitwise_xor_(other),
        lambda w, other: w[:, 3:53].__setitem__(every, True),
        lambda w, other: w[:, 3:53].masked_fill_(other, False),
    ]
    agree(plain[:, 31], weight[:, 31].to_bool())
    agree(plain[every, columns], weight[every, columns])
    for change in changes:
        change(plain, wide)
        change(weight, BinaryEmbeddingParameter(wide))
    assert largest <= 400  # a piece is of 300 weights, in whole words
    agree(plain, weight.to_bool())


def test_code_that_reads_a_tensors_memory_itself_finds_no_way_to_crash() -> None:
    _, weight = both()
    with pytest.raises((RuntimeError, TypeError), match=r"data pointer|apply_ is only implemented on CPU tensors"):
        weight.apply_(lambda value: value)
    with pytest.raises(RuntimeError, match="data pointer"):
        weight.data_ptr()


def test_its_words_are_shared_with_other_processes() -> None:
    plain, weight = both()
    assert weight.is_shared() == plain.is_shared()  # of a GPU all memory is
    assert weight[3:5].share_memory_().is_shared()
    assert weight.is_shared()
    weight[4] ^= True
    plain[4] ^= True
    agree(plain, weight.to_bool())


def test_a_shallow_copy_shares_the_words() -> None:
    _, weight = both()
    for part in (weight, weight[2:5], weight[4], weight[:, 3]):
        before = part.to_bool()
        copy.copy(part).bitwise_not_()
        agree(~before, part.to_bool())


def test_numbers_are_not_taken_for_bits() -> None:
    plain, weight = both()
    with pytest.raises(DtypeError, match="signs of floats"):
        weight.data = -torch.ones(9, 100)
    agree(plain, weight.to_bool())
