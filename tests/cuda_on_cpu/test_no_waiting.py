"""A training step on CUDA never asks the device for a value: the host would have to wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packedbag import PackedEmbeddingBag
from packedbag.backends import get, registry
from packedbag.optim import CounterSGD
from packedbag.optim.device_control import DeviceControl
from tests.cuda_on_cpu import machine

pytestmark = pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")

#: Operators whose result, or its size, the host can know only when the device is done.
WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique",
    "unique",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "item",
    "bincount",
)


class Watch(TorchDispatchMode):
    """Raises where an operator waits for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Judge one operator."""
        name = func.__name__.split(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] if i is not None
        )
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or masks or unsized:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def backend() -> Iterator[Any]:
    with machine.serving_the_cpu() as emulated:
        yield emulated


@pytest.mark.parametrize("bounds", ["raise", "clamp", "skip", "unchecked"])
@pytest.mark.parametrize("form", ["2-D", "offsets", "offsets with the end"])
@pytest.mark.parametrize(
    ("mode", "scale", "weighted"),
    [
        ("sum", None, False),
        ("mean", "row", True),
        ("majority", "table", False),
        ("max", None, False),
    ],
)
def test_forward_backward_and_step_wait_for_nothing(
    mode: str, scale: str | None, weighted: bool, form: str, bounds: str
) -> None:
    module = PackedEmbeddingBag(
        50, 70, mode=mode, scale=scale, padding_idx=2, bounds=bounds, include_last_offset=form.endswith("end")
    )
    optimizer = CounterSGD([module.anchor], lr=0.1, seed=0)
    indices = torch.randint(50, (12, 20) if form == "2-D" else (240,))
    offsets = None if form == "2-D" else torch.tensor([0, 100, 100, 240][: 4 if module.include_last_offset else 3])
    weights = torch.rand(indices.shape, requires_grad=True) if weighted else None
    grad = torch.randn(12 if offsets is None else 3, 70)
    before = module.words.clone()
    with Watch():
        for _ in range(2):
            for _ in range(2):  # gradients of two calls are joined
                module(indices, offsets, weights).backward(grad)
            optimizer.step()
            optimizer.zero_grad()
    assert not module.words.equal(before)
    optimizer.check()
    assert optimizer.param_groups[0]["step"] == 2


def test_the_watch_can_fail() -> None:
    x = torch.ones(3)
    with Watch():
        for ask in (lambda: bool(x.any()), lambda: x[x > 0], lambda: x.nonzero(), lambda: float(x.sum())):
            with pytest.raises(AssertionError, match="waits for the device"):
                ask()


def test_a_step_with_a_bad_index_changes_nothing_and_is_raised_once() -> None:
    module = PackedEmbeddingBag(50, 70)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)

    def step(indices: torch.Tensor) -> None:
        module(indices).sum().backward()
        optimizer.step()

    step(torch.tensor([[1, 2]]))
    before = [module.words.clone(), optimizer.state[module.anchor]["planes"].clone()]
    with pytest.raises(IndexError, match=r"indices\[1\] is 50; the table has rows 0\.\.49\."):
        step(torch.tensor([[1, 50]]))  # the emulator is done at once; a GPU may be so only some steps later
    assert module.words.equal(before[0])
    assert optimizer.state[module.anchor]["planes"].equal(before[1])
    optimizer.check()  # one mistake is one error
    step(torch.tensor([[3, 4]]))
    assert not module.words.equal(before[0])
    assert optimizer.state_dict()["param_groups"][0]["step"] == 2


def test_a_mistake_elsewhere_does_not_undo_a_step() -> None:
    module, other = PackedEmbeddingBag(50, 70), PackedEmbeddingBag(9, 70)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)
    before = module.words.clone()
    module(torch.tensor([[1, 2]])).sum().backward()
    other(torch.tensor([[9]]))
    with pytest.raises(IndexError, match=r"indices\[0\] is 9"):
        optimizer.step()
    assert not module.words.equal(before)
    assert optimizer.state_dict()["param_groups"][0]["step"] == 1


def test_refused_steps_change_no_table_and_name_the_first() -> None:
    tables = [PackedEmbeddingBag(50, 70), PackedEmbeddingBag(20, 33)]
    optimizer = CounterSGD([t.anchor for t in tables], lr=0.5, seed=0)
    before = [t.words.clone() for t in tables]
    for factor in (torch.inf, torch.nan):
        tables[0](torch.tensor([[1, 2]])).sum().backward()
        (tables[1](torch.tensor([[1, 2]])) * factor).sum().backward()
        with pytest.raises(ValueError, match=r"table 1 \(PackedEmbeddingBag\(20, 33\)\) is NaN or .*; 1 step was"):
            optimizer.step()
    assert all(t.words.equal(words) for t, words in zip(tables, before, strict=True))
    assert optimizer.state_dict()["param_groups"][0]["step"] == 0


def test_a_host_that_learns_late_hears_of_all_refused_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PackedEmbeddingBag(50, 70)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceControl, "pending", False)  # what the device wrote has not arrived
        for _ in range(3):
            (module(torch.tensor([[1, 2]])) * torch.nan).sum().backward()
            optimizer.step()
    with pytest.raises(ValueError, match=r"table 0 .* is NaN or infinite; 3 steps were refused on the device"):
        optimizer.check()


def test_a_step_that_fails_half_way_does_not_decide_the_next(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = PackedEmbeddingBag(50, 70)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)

    def fail(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(backend, "marked_step", fail)
        (module(torch.tensor([[1, 2]])) * torch.nan).sum().backward()
        with pytest.raises(MemoryError):
            optimizer.step()
    optimizer.zero_grad()
    module(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["step"] == 1


def test_a_refused_batch_leaves_the_rest_of_the_model_finite() -> None:
    module = PackedEmbeddingBag(50, 70)
    top = torch.nn.Linear(70, 1)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)
    before = module.words.clone()
    top(module(torch.tensor([[1, 50]]))).sum().backward()
    torch.nn.utils.clip_grad_norm_([module.anchor, *top.parameters()], 1.0)
    with pytest.raises(IndexError, match=r"indices\[1\] is 50"):
        optimizer.step()
    assert top.weight.grad is not None
    assert top.weight.grad.isfinite().all()
    assert module.words.equal(before)


def test_a_loaded_count_goes_on_in_the_same_memory() -> None:
    module = PackedEmbeddingBag(50, 70)
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)

    def steps(count: int) -> None:
        for _ in range(count):
            module(torch.tensor([[1, 2, 3]])).sum().backward()
            optimizer.step()

    steps(1)
    saved = optimizer.state_dict()
    fields = next(iter(optimizer._controls._of.values())).fields
    steps(3)
    optimizer.load_state_dict(saved)
    steps(1)
    assert next(iter(optimizer._controls._of.values())).fields is fields  # a captured graph holds its address
    assert optimizer.state_dict()["param_groups"][0]["step"] == 2


def test_findings_of_inference_are_raised_outside_it(backend: Any) -> None:
    module = PackedEmbeddingBag(50, 70)
    with torch.inference_mode():
        module(torch.tensor([[1, 50]]))
    with pytest.raises(IndexError, match=r"indices\[1\] is 50"):
        backend.raise_found(torch.device("cpu"), wait=True)
    module(torch.tensor([[1, 2]]))


def test_a_table_moved_between_devices_keeps_its_count(backend: Any) -> None:
    module = PackedEmbeddingBag(50, 70, generator=torch.Generator().manual_seed(0))
    optimizer = CounterSGD([module.anchor], lr=0.5, seed=0)

    def steps(count: int) -> None:
        for _ in range(count):
            module(torch.tensor([[1, 2, 3]])).sum().backward()
            optimizer.step()

    steps(2)
    emulated = registry._select
    registry._select = lambda *asked: get("eager")  # type: ignore[assignment]
    steps(1)
    assert optimizer.param_groups[0]["step"] == 3
    registry._select = emulated
    steps(1)
    assert optimizer.state_dict()["param_groups"][0]["step"] == 4
