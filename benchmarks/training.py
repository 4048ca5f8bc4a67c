"""A whole training step, forward, backward and update: packedbag, FBGEMM's fused optimizer, torch without any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

import packedbag
from benchmarks.contender import Batch
from benchmarks.forward import Options, batches
from benchmarks.pages import on_huge_pages
from benchmarks.peers import fbgemm, torch_float
from benchmarks.shapes import Shape
from benchmarks.slices import Turn, take_turns
from benchmarks.table import Table
from packedbag.optim import CounterSGD, packed_parameters

TORCH = "torch fp32, forward and sparse backward, no optimizer"
FBGEMM = "FBGEMM fp32, fused row-wise Adagrad"
LR = 0.01
BITS = (8, 4, 2)


def name_of(bits: int) -> str:
    """Return the name of packedbag's step with k-bit counters."""
    return f"packedbag, CounterSGD k = {bits}"


class WrongStepError(RuntimeError):
    """A step did not do what the gradient asks for: its time would mean nothing."""

    def __init__(self, name: str, shape: Shape, what: str) -> None:
        super().__init__(f"{name} on {shape.name}: {what}")


class PackedStep:
    """packedbag: `PackedEmbeddingBag`, backward, `CounterSGD.step`."""

    def __init__(self, table: Table, bits: int) -> None:
        # A table of its own: the others are compared on the words as they were.
        self.module = packedbag.PackedEmbeddingBag(table.shape.rows, table.shape.dim)
        self.module.load_state_dict({"weight": table.module.weight})
        self.optimizer = CounterSGD(packed_parameters(self.module), lr=LR, bits=bits, decay=0.0, seed=0)

    def __call__(self, indices: torch.Tensor, grad: torch.Tensor) -> None:
        self.module(indices).backward(grad)
        self.optimizer.step()

    def phases(self, indices: torch.Tensor, grad: torch.Tensor) -> tuple[float, float, float]:
        """Return the seconds of forward, backward and update of one step."""
        start = time.perf_counter()
        out = self.module(indices)
        forward = time.perf_counter()
        out.backward(grad)
        backward = time.perf_counter()
        self.optimizer.step()
        return forward - start, backward - forward, time.perf_counter() - backward

    def squares(self, shape: Shape) -> torch.Tensor:
        """Return what a first step made of each row: its mean squared gradient (V,), to 16 bits, 0 if untouched."""
        state = self.optimizer.state[self.module.anchor]["row_state"]
        return (state & ~0xFF).view(torch.float32).clone()


class TorchStep:
    """torch: forward, and the sparse gradient of a backward that no optimizer uses."""

    def __init__(self, table: Table) -> None:
        self.weight = torch.nn.Parameter(torch_float.weights(table, torch.float32))

    def __call__(self, indices: torch.Tensor, grad: torch.Tensor) -> None:
        self.weight.grad = None
        embedding_bag(indices, self.weight, mode="sum", sparse=True).backward(grad)

    def squares(self, shape: Shape) -> torch.Tensor:
        """Return each row's mean squared gradient (V,)."""
        assert self.weight.grad is not None
        found = self.weight.grad.coalesce()
        squares = torch.zeros(shape.rows)
        squares[found.indices()[0]] = found.values().square().mean(1)
        return squares


class FbgemmStep:
    """FBGEMM's split table: its backward updates the weights with row-wise Adagrad."""

    def __init__(self, table: Table) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            EmbeddingLocation,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        rows, dim = table.shape.rows, table.shape.dim
        self.module = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
        )
        self.module.weights_host.data = torch.empty(0)
        self.module.weights_host.data = on_huge_pages((rows * dim,), torch.float32)
        (weight,) = self.module.split_embedding_weights()
        for start, stop, signs in table.signs():
            weight[start:stop] = signs

    def __call__(self, flat: torch.Tensor, offsets: torch.Tensor, grad: torch.Tensor) -> None:
        self.module(flat, offsets).backward(grad)

    def squares(self, shape: Shape) -> torch.Tensor:
        """Return the row-wise Adagrad's sums (V,): after a first step, each row's mean squared gradient."""
        (state,) = self.module.split_optimizer_states()
        return state[0].clone() if isinstance(state, (tuple, list)) else state.clone()


def _turns(table: Table, inputs: Sequence[Batch], grad: torch.Tensor) -> tuple[list[tuple[Any, Turn]], dict[str, str]]:
    two_dimensional = [(batch.indices, grad) for batch in inputs]
    found: list[tuple[Any, Turn]] = []

    def add(name: str, step: Any, arguments: Sequence[tuple[Any, ...]]) -> None:
        found.append((step, Turn(name, step, arguments, grad=True)))

    for bits in BITS:
        add(name_of(bits), PackedStep(table, bits), two_dimensional)
    add(TORCH, TorchStep(table), two_dimensional)
    reason = fbgemm.missing()
    if reason:
        return found, {FBGEMM: reason}
    add(FBGEMM, FbgemmStep(table), [(batch.flat, batch.offsets, grad) for batch in inputs])
    return found, {}


def check(steps: Sequence[tuple[Any, Turn]], shape: Shape) -> None:
    """Take one step with each, and raise unless all saw the same gradient in every row, and in no other row."""
    for _, turn in steps:
        turn.function(*turn.inputs[0])
    judge = next(step for step, turn in steps if turn.name == TORCH).squares(shape)
    for step, turn in steps:
        squares = step.squares(shape)
        if not torch.equal(squares > 0, judge > 0):
            raise WrongStepError(turn.name, shape, "touched other rows than the batch holds")
        # packedbag keeps 16 of float32's 24 bits of a row's statistic.
        if not torch.allclose(squares, judge, rtol=2e-5 if step.__class__ is not PackedStep else 1e-4, atol=0):
            raise WrongStepError(turn.name, shape, "summed other gradients than torch")


def measure(shape: Shape, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the seconds a step of every contender, and where packedbag's go, as JSON can hold them."""
    start = time.perf_counter()
    say(f"training step, {shape.name}")
    table = Table(shape)
    inputs = batches(shape, options.sets or shape.sets)
    grad = torch.from_numpy(np.random.default_rng(3).standard_normal((shape.bags, shape.dim)).astype(np.float32))
    steps, skipped = _turns(table, inputs, grad)
    check(steps, shape)
    runs = [asdict(taken) for taken in take_turns([turn for _, turn in steps], options.threads, options.seconds)]
    torch.set_num_threads(min(options.threads))
    parts = [steps[0][0].phases(*arguments) for arguments in steps[0][1].inputs]
    return {
        "shape": shape.name,
        "sets": len(inputs),
        "bags": shape.bags,
        "skipped": skipped,
        "runs": runs,
        "phases": {
            name: statistics.median(column)
            for name, column in zip(("forward", "backward", "update"), zip(*parts, strict=True), strict=True)
        },
        "took_seconds": time.perf_counter() - start,
    }


def memory(shape: Shape) -> dict[str, Any]:
    """Return what a step of packedbag holds above table and state: `packedbag.report.step_memory`, k = 8.

    The batch is the first of `batches`; the process is one of its own.
    """
    from packedbag.report.step_memory import Bags, measure

    batch = batches(shape, 1)[0]
    cost = measure("packed", [Bags(shape.rows, batch.flat.numpy(), batch.offsets.numpy())], shape.dim, bits=8)
    above = cost.peak_bytes - cost.table_bytes - cost.state_bytes
    return {"shape": shape.name, **vars(cost), "above_bytes": above}
