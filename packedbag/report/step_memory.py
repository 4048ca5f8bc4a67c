"""The most memory that tables need in one training step, measured in a process of its own.

A child process imports everything, takes a step with tiny tables so that libraries, threads and caches are
there, notes what it holds, and then builds the real tables and takes two steps: the first makes the optimizer's
state, the second runs with it. The answer is the peak of resident memory (VmHWM) above what was held before. The
perceptron is left out: it is the same for every kind. malloc is told to give freed memory back, so that no
leftover hides an allocation.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, PackedBagError
from packedbag.report import memory

#: The kinds, and about how many bytes a weight a step holds at once.
KINDS = {"packed": 1.2, "char": 10.5, "fp32": 9.0}
#: The part of the machine's free memory that a measurement may take: no one wants to lose a run to it.
SHARE = 0.5
TIMEOUT_SECONDS = 600

#: Bytes that the optimizer of `CharTable` holds for a weight: one float32.
CHAR_STATE_BYTES = 4

#: glibc's numbers for mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
PAGE = 4096


class MeasurementError(PackedBagError, RuntimeError):
    """The process that measures ended without a result."""

    def __init__(self, kind: str, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["no message; perhaps it was killed for want of memory"]
        super().__init__(f"the memory of a step with {kind} tables could not be measured: {last[0]}")


@dataclass
class Bags:
    """One table's part of a batch: rows of the table, and its bags as `torch.nn.EmbeddingBag` takes them."""

    num_embeddings: int
    indices: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass
class Cost:
    """Bytes of one kind: the tables and the optimizer's state, counted, and the peak of a step, measured."""

    table_bytes: int
    state_bytes: int
    peak_bytes: int


def measure(kind: str, batch: Sequence[Bags], embedding_dim: int, *, bits: int = 8) -> Cost:
    """Measure a training step of tables in a child process.

    Args:
        kind: "packed" (`CounterSGD`), "char" (see `CharTable`) or "fp32" (sparse `torch.nn.EmbeddingBag` with
            Adagrad).
        batch: one `Bags` for each table.
        embedding_dim: D.
        bits: of the packed counters.

    Raises:
        MeasurementError: the child failed, or there is too little memory to try.
    """
    if kind not in KINDS:
        raise ArgumentError("kind", repr(kind), "'packed', 'char' or 'fp32'")
    need = KINDS[kind] * embedding_dim * sum(bags.num_embeddings for bags in batch)
    free = memory.available_bytes()
    if need > SHARE * free:
        raise MeasurementError(kind, f"it takes about {memory.human(need)}, and {memory.human(free)} are free")
    with tempfile.TemporaryDirectory(prefix="packedbag-") as folder:
        arrays = {f"indices{i}": bags.indices for i, bags in enumerate(batch)}
        arrays |= {f"offsets{i}": bags.offsets for i, bags in enumerate(batch)}
        rows = np.array([bags.num_embeddings for bags in batch], np.int64)
        path = Path(folder) / "batch.npz"
        np.savez(path, rows=rows, **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __spec__.name, kind, str(path), str(embedding_dim), str(bits)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise MeasurementError(kind, done.stderr)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


class CharTable:
    """A boolean table as torch keeps it, 8 bits a weight, and the step that boolean training needs.

    It does what bitorch-engine's `BinaryEmbeddingBag` documents, with no more memory than that takes: backward
    makes a dense float gradient (4 bytes a weight) and a dense boolean one (1); the optimizer averages the
    latter in a float state (4), and flips the weights of active rows whose average passes a threshold.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        import torch

        self.weight = torch.rand(num_embeddings, embedding_dim) > 0.5
        self.grad: torch.Tensor | None = None
        self.average: torch.Tensor | None = None

    def step(self, indices: Any, offsets: Any) -> None:
        """Look up and vote, spread a gradient of ones over the rows, update."""
        import torch

        self.grad = None
        bags = torch.repeat_interleave(offsets.diff())
        ones = torch.zeros(len(offsets) - 1, self.weight.shape[1])
        ones.index_add_(0, bags, self.weight[indices].float())
        grad_out = torch.ones_like(ones)
        dense = torch.zeros(self.weight.shape)
        dense.index_add_(0, indices, grad_out[bags])
        self.grad = dense != 0
        del dense
        if self.average is None:
            self.average = torch.zeros(self.weight.shape)
        self.average.lerp_(self.grad.float(), 0.1)
        active = torch.unique(indices)
        self.weight[active] ^= self.average[active] > 0.5


def _char(batch: Sequence[Bags], embedding_dim: int, bits: int) -> tuple[Callable[[], None], Callable[[], Cost]]:
    import torch

    tables = [CharTable(bags.num_embeddings, embedding_dim) for bags in batch]
    inputs = [(torch.from_numpy(bags.indices), torch.from_numpy(bags.offsets)) for bags in batch]

    def step() -> None:
        for table, (indices, offsets) in zip(tables, inputs, strict=True):
            table.step(indices, offsets)

    def cost() -> Cost:
        states = [table.average.nbytes for table in tables if table.average is not None]
        return Cost(sum(table.weight.nbytes for table in tables), sum(states), 0)

    return step, cost


def _trained(
    kind: str, batch: Sequence[Bags], embedding_dim: int, bits: int
) -> tuple[Callable[[], None], Callable[[], Cost]]:
    import torch

    from packedbag.nn import PackedEmbeddingBag
    from packedbag.optim import CounterSGD, packed_parameters

    inputs = [(torch.from_numpy(bags.indices), torch.from_numpy(bags.offsets)) for bags in batch]
    tables = torch.nn.ModuleList()
    optimizer: torch.optim.Optimizer
    for bags in batch:
        if kind == "packed":
            tables.append(PackedEmbeddingBag(bags.num_embeddings, embedding_dim, mode="mean", include_last_offset=True))
        else:
            tables.append(
                torch.nn.EmbeddingBag(
                    bags.num_embeddings, embedding_dim, mode="mean", include_last_offset=True, sparse=True
                )
            )
    if kind == "packed":
        optimizer = CounterSGD(packed_parameters(tables), lr=0.02, bits=bits, seed=0)
    else:
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
        optimizer = torch.optim.Adagrad(tables.parameters(), lr=0.02)

    def step() -> None:
        outputs = [table(*given) for table, given in zip(tables, inputs, strict=True)]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        optimizer.step()
        optimizer.zero_grad()

    def cost() -> Cost:
        state = [t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return Cost(sum(_weight_bytes(table) for table in tables), sum(state), 0)

    return step, cost


def _weight_bytes(table: Any) -> int:
    return int(table.weight.nbytes)


def _build(
    kind: str, batch: Sequence[Bags], embedding_dim: int, bits: int
) -> tuple[Callable[[], None], Callable[[], Cost]]:
    if kind == "char":
        return _char(batch, embedding_dim, bits)
    return _trained(kind, batch, embedding_dim, bits)


def _give_memory_back() -> None:
    """Make blocks of a page or more come straight from the system and go straight back; a no-op without glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        for option, value in ((M_MMAP_THRESHOLD, PAGE), (M_TRIM_THRESHOLD, PAGE), (M_TOP_PAD, 0)):
            library.mallopt(option, value)
        library.malloc_trim(0)


def _child(kind: str, path: str, embedding_dim: int, bits: int) -> Cost:
    tiny = [Bags(8, np.arange(8, dtype=np.int64), np.arange(0, 9, 2, dtype=np.int64))]
    warm_up, _ = _build(kind, tiny, embedding_dim, bits)
    for _ in range(3):
        warm_up()
    with np.load(path) as file:
        rows = file["rows"].tolist()
        batch = [Bags(v, file[f"indices{i}"], file[f"offsets{i}"]) for i, v in enumerate(rows)]
    _give_memory_back()
    before = memory.resident_bytes() if memory.reset_peak() else memory.peak_bytes()
    step, cost = _build(kind, batch, embedding_dim, bits)
    for _ in range(2):
        step()
    found = cost()
    found.peak_bytes = memory.peak_bytes() - before
    return found


if __name__ == "__main__":
    print(json.dumps(vars(_child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
