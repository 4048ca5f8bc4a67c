"""Where `BinaryEmbeddingParameter` and what it meets are on two devices, it does what a plain bool tensor does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingParameter
from tests.adapters.bools import agree, bools, values

pytestmark = pytest.mark.usefixtures("small_pieces")

Make = Callable[[torch.Tensor], torch.Tensor]
#: Each gets the tensor, and what puts another tensor where the other one is.
READS: dict[str, Callable[[Any, Make], Any]] = {
    "and": lambda w, put: w & put(bools(9, 100, seed=1)),
    "or with a row": lambda w, put: w | put(bools(100, seed=1)),
    "and from the left": lambda w, put: put(bools(9, 100, seed=1)) & w,
    "and with more": lambda w, put: w & put(bools(2, 9, 100, seed=1)),
    "and of packed tables": lambda w, put: (
        w & (BinaryEmbeddingParameter(put(bools(9, 100))) if hasattr(w, "bits") else put(bools(9, 100)))
    ),
    "xor with a number": lambda w, put: w ^ put(torch.tensor(True)),
    "equal to": lambda w, put: w == put(bools(9, 100, seed=1)),
    "equal": lambda w, put: torch.equal(w, put(bools(9, 100, seed=1))),
    "masked fill": lambda w, put: w.masked_fill(put(bools(9, 100, seed=1)), True),
    "rows": lambda w, put: w[put(torch.tensor([3, -1]))],
    "pairs": lambda w, put: w[put(torch.tensor([3, 1])), put(torch.tensor([0, 7]))],
    "columns": lambda w, put: w[:, put(torch.tensor([3, 99]))],
    "rows of a mask": lambda w, put: w[put(bools(9, seed=1))],
    "values of a mask": lambda w, put: w[put(bools(9, 100, seed=1))],
    "values of a mask of nothing": lambda w, put: w[:0][put(bools(0, 100))],
    "index select": lambda w, put: w.index_select(0, put(torch.tensor([3, 1]))),
    "embedding": lambda w, put: torch.nn.functional.embedding(put(torch.tensor([3, 1])), w),
    "cat": lambda w, put: torch.cat([w, put(bools(2, 100))]),
    "into a plain tensor": lambda w, put: put(bools(9, 100)).copy_(w),
    "into plain floats by a mask": lambda w, put: put(torch.zeros(9, 100)).masked_fill_(w, 3.0),
    "moved": lambda w, put: put(w),
    "moved columns": lambda w, put: put(w[2:5, 3:50]),
}
WRITES: dict[str, Callable[[Any, Make], Any]] = {
    "copy": lambda w, put: w.copy_(put(bools(9, 100, seed=1))),
    "copy of a row": lambda w, put: w.copy_(put(bools(100, seed=1))),
    "copy of columns": lambda w, put: w[:, 3:50].copy_(put(bools(9, 47, seed=1))),
    "copies of a list": lambda w, put: torch._foreach_copy_([w], [put(bools(9, 100, seed=1))]),
    "a row": lambda w, put: w.__setitem__(3, put(bools(100, seed=1))),
    "and": lambda w, put: w.__iand__(put(bools(9, 100, seed=1))),
    "xor with a row": lambda w, put: w.__ixor__(put(bools(100, seed=1))),
    "xor of columns with a number": lambda w, put: w[:, 3:50].__ixor__(put(torch.tensor(True))),
    "masked fill": lambda w, put: w.masked_fill_(put(bools(9, 100, seed=1)), True),
    "masked fill of columns": lambda w, put: w[:, 3:50].masked_fill_(put(bools(9, 47, seed=1)), False),
    "rows": lambda w, put: w.__setitem__(put(torch.tensor([1, 2])), bools(2, 100, seed=1).to(w.device)),
    "rows of other values": lambda w, put: w.__setitem__([1, 2], put(bools(2, 100, seed=1))),
    "pairs": lambda w, put: w.__setitem__((put(torch.tensor([1, 2])), put(torch.tensor([3, 4]))), True),
    "columns": lambda w, put: w.__setitem__((slice(None), put(torch.tensor([3, 4]))), True),
    "a mask": lambda w, put: w.__setitem__(put(bools(9, 100, seed=1)), True),
    "index fill": lambda w, put: w.index_fill_(0, put(torch.tensor([1, 4])), True),
    "index copy": lambda w, put: w.index_copy_(0, torch.tensor([1, 4]).to(w.device), put(bools(2, 100, seed=1))),
}
NUMBERS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "rows": lambda w, number: w.__setitem__([1, 2], number),
    "rows of columns": lambda w, number: w[:, 3:50].__setitem__([1, 2], number),
    "pairs": lambda w, number: w.__setitem__(([1, 2], [3, 4]), number),
    "columns": lambda w, number: w.__setitem__((slice(None), [3, 4]), number),
    "a mask": lambda w, number: w.__setitem__(bools(9, 100, seed=1).to(w.device), number),
    "fill": lambda w, number: w.fill_(number),
    "index fill": lambda w, number: w.index_fill_(1, torch.tensor([1, 4]).to(w.device), number),
    "masked fill": lambda w, number: w.masked_fill_(bools(9, 100, seed=1).to(w.device), number),
    "masked fill of a copy": lambda w, number: w.copy_(w.masked_fill(bools(9, 100, seed=1).to(w.device), number)),
}
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
every_pair = pytest.mark.parametrize(
    ("here", "there"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda:0", "cpu", marks=gpu),
        pytest.param("cpu", "cuda:0", marks=gpu),
        pytest.param("cuda:0", "cuda:1", marks=two_gpus),
    ],
)


def outcome(operator: Callable[[Any, Make], Any], tensor: torch.Tensor, there: str) -> Any:
    """Return what the operator gives, or that torch refuses it, as it does in several classes of errors."""
    try:
        return values(operator(tensor, lambda made: made.to(there)))
    except (RuntimeError, IndexError):
        return "refused"


def both(device: str) -> tuple[torch.Tensor, BinaryEmbeddingParameter]:
    plain = bools(9, 100).to(device)
    return plain, BinaryEmbeddingParameter(plain)


@every_pair
@pytest.mark.parametrize("operator", READS.values(), ids=READS)
def test_what_is_read_is_what_bools_give_there(operator: Callable[[Any, Make], Any], here: str, there: str) -> None:
    plain, weight = both(here)
    expected, found = outcome(operator, plain, there), outcome(operator, weight, there)
    agree(expected, found)
    if isinstance(expected, torch.Tensor):
        assert found.device == expected.device


@every_pair
@pytest.mark.parametrize("operator", WRITES.values(), ids=WRITES)
def test_what_is_written_is_what_bools_hold_then(operator: Callable[[Any, Make], Any], here: str, there: str) -> None:
    plain, weight = both(here)
    refused = outcome(operator, plain, there) == "refused"
    assert (outcome(operator, weight, there) == "refused") == refused
    agree(plain, weight.to_bool())


@every_pair
@pytest.mark.parametrize("operator", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("number", [False, True])
def test_a_number_that_bits_are_set_to_may_be_anywhere(
    operator: Callable[[Any, torch.Tensor], Any], number: bool, here: str, there: str
) -> None:
    plain, weight = both(here)
    operator(plain, torch.tensor(number, device=here))
    operator(weight, torch.tensor(number, device=there))
    agree(plain, weight.to_bool())


def test_bits_are_never_moved_to_where_they_are_combined() -> None:
    weight = both("cpu")[1]
    with pytest.raises(RuntimeError, match="same device, but found at least two: cpu and meta"):
        weight & torch.ones(9, 100, dtype=torch.bool, device="meta")


@gpu
@pytest.mark.parametrize("part", [slice(None), 3, (slice(2, 5), slice(3, 50))])
def test_an_array_is_made_of_bits_on_a_gpu_by_force_alone(part: Any) -> None:
    plain, weight = (tensor[part] for tensor in both("cuda"))
    np.testing.assert_array_equal(weight.numpy(force=True), plain.cpu().numpy())
    np.testing.assert_array_equal(weight.cpu().numpy(), plain.cpu().numpy())
    for tensor in (plain, weight):
        for make in (lambda each: each.numpy(), np.asarray):
            with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
                make(tensor)
