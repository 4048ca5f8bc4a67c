"""A whole training step, forward, backward and update: packedbag, and torch with sparse and with dense gradients."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

import packedbag
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.forward import Options, Say, batches, raise_pending, release
from benchmarks.gpu.oracle import WrongStepError, check_step
from benchmarks.gpu.shapes import STEP_SETS
from benchmarks.gpu.turns import Turn, reason, take_turns
from benchmarks.shapes import Shape
from packedbag.optim import CounterSGD, packed_parameters

SPARSE = "nn.EmbeddingBag, sparse gradient, SparseAdam"
DENSE = "nn.EmbeddingBag, dense gradient, Adam (fused)"
LR = 0.01
BITS = (8, 4, 2)
#: packedbag keeps 16 of float32's 24 bits of a row's statistic; torch adds with atomics, in any order, and a fused Adam
#: that takes 1 - 0.999 in float32 is 1.3e-5 off.
NEAR = 1e-4
PHASES = ("forward", "backward", "update")


def name_of(bits: int) -> str:
    """Return the name of packedbag's step with k-bit counters."""
    return f"packedbag, CounterSGD k = {bits}"


class PackedStep:
    """packedbag: `PackedEmbeddingBag`, backward, `CounterSGD.step`."""

    def __init__(self, shape: Shape, device: torch.device, bits: int) -> None:
        generator = torch.Generator(device).manual_seed(4)
        self.module = packedbag.PackedEmbeddingBag(shape.rows, shape.dim, device=device, generator=generator)
        self.optimizer = CounterSGD(packed_parameters(self.module), lr=LR, bits=bits, seed=0)

    def __call__(self, indices: torch.Tensor, grad: torch.Tensor) -> None:
        self.module(indices).backward(grad)
        self.optimizer.step()

    def first(self, name: str, shape: Shape, indices: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Take the first step, held to the oracle; return each row's mean squared gradient (V,), 0 if untouched."""
        check_step(name, shape.name, self.module, self.optimizer, indices, grad)
        state: torch.Tensor = self.optimizer.state[self.module.anchor]["row_state"]
        return (state & ~0xFF).view(torch.float32).clone()

    def phases(self, clock: Clock, indices: torch.Tensor, grad: torch.Tensor) -> tuple[float, float, float]:
        """Return the device's seconds of forward, backward and update of one step."""
        out: list[torch.Tensor] = []
        forward = clock.seconds(lambda: out.append(self.module(indices)))
        backward = clock.seconds(lambda: out[0].backward(grad))
        return forward, backward, clock.seconds(self.optimizer.step)


class TorchStep:
    """torch: `nn.EmbeddingBag` in fp32 with `SparseAdam` on sparse gradients, or `Adam` on dense ones."""

    def __init__(self, shape: Shape, device: torch.device, *, sparse: bool) -> None:
        weight = torch.empty((shape.rows, shape.dim), device=device).normal_()
        self.module = torch.nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="sum", sparse=sparse)
        parameters = list(self.module.parameters())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SparseAdam(parameters, lr=LR) if sparse else torch.optim.Adam(parameters, lr=LR, fused=True)
        )

    def __call__(self, indices: torch.Tensor, grad: torch.Tensor) -> None:
        self.module(indices).backward(grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def first(self, name: str, shape: Shape, indices: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Take the first step; return each row's mean squared gradient (V,), which the second moments hold."""
        self(indices, grad)
        (state,) = self.optimizer.state.values()
        share = 1 - self.optimizer.param_groups[0]["betas"][1]
        return state["exp_avg_sq"].mean(1) / share


Step = PackedStep | TorchStep


def contenders() -> dict[str, Callable[[Shape, torch.device], Step]]:
    """Return what makes each contender, by name."""
    found: dict[str, Callable[[Shape, torch.device], Step]] = {}
    for bits in BITS:
        found[name_of(bits)] = functools.partial(PackedStep, bits=bits)
    return {
        **found,
        SPARSE: functools.partial(TorchStep, sparse=True),
        DENSE: functools.partial(TorchStep, sparse=False),
    }


class Judge:
    """The rows of a batch and their mean squared gradients, summed with stock operators.

    Args:
        indices: (B, L).
        grad: (B, D) float32, of the output, a sum.
    """

    def __init__(self, indices: torch.Tensor, grad: torch.Tensor) -> None:
        self.rows, inverse = torch.unique(indices.reshape(-1), return_inverse=True)
        sums = torch.zeros((len(self.rows), grad.shape[1]), device=grad.device)
        for entry in inverse.view(indices.shape).unbind(1):
            sums.index_add_(0, entry, grad)
        self.squares = sums.square().mean(1)

    def check(self, name: str, shape: Shape, squares: torch.Tensor, near: float) -> None:
        """Raise `WrongStepError` unless ``squares`` (V,) are of the same rows, and near in value."""
        if int((squares > 0).sum()) != len(self.rows) or not bool((squares[self.rows] > 0).all()):
            raise WrongStepError(name, shape.name, "touched other rows than the batch holds")
        if not torch.allclose(squares[self.rows], self.squares, rtol=near, atol=0):
            raise WrongStepError(name, shape.name, "summed other gradients than stock operators do")


def measure(shape: Shape, options: Options, say: Say) -> dict[str, Any]:
    """Return the seconds a step of every contender, what it holds at its peak, and where packedbag's time goes."""
    start = time.perf_counter()
    device, clock = options.device, options.clock
    release(device)
    inputs = batches(shape, options.sets or STEP_SETS, device, torch.int64)
    generator = torch.Generator(device).manual_seed(3)
    grad = torch.empty((shape.bags, shape.dim), device=device).normal_(generator=generator)
    judge = Judge(inputs[0], grad)
    makers = {name: make for name, make in contenders().items() if _wanted(name, options.peers)}
    say(f"training step, {shape.name}: {len(makers)} contenders")
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    peaks: dict[str, int | None] = {}
    for name, make in makers.items():
        try:
            steps[name], peaks[name] = _made(name, make, shape, clock, judge, inputs, grad)
        except Exception as error:  # one who fails must not take the others along
            failed[name] = reason(error)
            say(f"  {name} is out: {failed[name]}")
        if name in failed:  # only now: within `except` the frames that failed still hold their memory
            release(device)
    turns = [
        Turn(name, step, [(indices, grad) for indices in inputs], grad=True, captures=False)
        for name, step in steps.items()
    ]
    taken = take_turns(clock, turns, options.seconds)
    raise_pending(device)
    main = steps.get(name_of(BITS[0]))
    phases = _phases(main, clock, inputs, grad) if isinstance(main, PackedStep) else None
    del steps, turns, main
    release(device)
    return {
        "shape": shape.name,
        "sets": len(inputs),
        "bags": shape.bags,
        "skipped": {},
        **asdict(taken),
        "failed": {**failed, **taken.failed},
        "peak_bytes": peaks,
        "phases": phases,
        "took_seconds": time.perf_counter() - start,
    }


def _made(
    name: str,
    make: Callable[[Shape, torch.device], Step],
    shape: Shape,
    clock: Clock,
    judge: Judge,
    inputs: Sequence[torch.Tensor],
    grad: torch.Tensor,
) -> tuple[Step, int | None]:
    """Make a contender and check its first step; return it and what its second step holds at its peak."""
    step = make(shape, clock.device)
    judge.check(name, shape, step.first(name, shape, inputs[0], grad), NEAR)
    return step, clock.peak_bytes(lambda: step(inputs[-1], grad))


def _wanted(name: str, parts: Sequence[str] | None) -> bool:
    return parts is None or name == name_of(BITS[0]) or any(part.lower() in name.lower() for part in parts)


def _phases(step: PackedStep, clock: Clock, inputs: Sequence[torch.Tensor], grad: torch.Tensor) -> dict[str, float]:
    """Return the median seconds of each phase of packedbag's step."""
    columns = zip(*(step.phases(clock, indices, grad) for indices in inputs), strict=True)
    return {name: statistics.median(column) for name, column in zip(PHASES, columns, strict=True)}
