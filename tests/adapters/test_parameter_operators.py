"""The operators of `BinaryEmbeddingParameter` give what they give for a plain bool tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError
from tests.adapters.bools import agree, bools, both, tails_are_zero, values

pytestmark = pytest.mark.usefixtures("small_pieces")

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
    "numpy": lambda w: torch.from_numpy(w.cpu().numpy()),
    "asarray": lambda w: torch.from_numpy(np.asarray(w.cpu())),
    "asarray of integers": lambda w: torch.from_numpy(np.asarray(w.cpu(), dtype=np.int8)),
    "numpy by force": lambda w: torch.from_numpy(w.numpy(force=True)),
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
