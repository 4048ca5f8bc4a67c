"""`BinaryEmbeddingParameter` indexed and sliced as a plain bool tensor is: what is read, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter
from tests.adapters.bools import DIMS, agree, bools, both, tails_are_zero, values

pytestmark = pytest.mark.usefixtures("small_pieces")


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
