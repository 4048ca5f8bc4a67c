"""The most memory that tables need in one training step, measured in a process of its own.

A child process imports everything, takes steps with tiny tables so that libraries, threads and caches are there, notes
what it holds, and then builds the real tables and takes two steps: the first makes the optimizer's state, the second
runs with it. The answer is the peak of resident memory (VmHWM) above what was held before, or on a GPU that of torch's
allocator. The perceptron is left out: it is the same for every kind. malloc is told to give freed memory back, so that
no leftover hides an allocation. At last the tables are saved as a checkpoint, to nowhere: its bytes are counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import PackedBagError
from packedbag.report import memory
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import make_kind

#: The part of the machine's free memory that a measurement may take: no one wants to lose a run to it.
SHARE = 0.5
TIMEOUT_SECONDS = 600

#: What a child does, and about how much of its time it takes; it says so before it begins each.
STAGES = {"start": 0.0, "build": 0.1, "step 1": 0.4, "step 2": 0.7, "checkpoint": 0.9}
STAGE = "stage: "

#: glibc's numbers for mallopt, from malloc.h, and Linux's for prctl.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
PR_SET_PDEATHSIG = 1
PAGE = 4096


class MeasurementError(PackedBagError, RuntimeError):
    """The process that measures ended without a result."""

    def __init__(self, kind: str, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["no message; perhaps it was killed for want of memory"]
        super().__init__(f"the memory of a step with {kind} tables could not be measured: {last[0]}")
        self.reason = last[0]


class GpuMemoryError(MeasurementError):
    """No GPU says how much memory it has left."""

    def __init__(self, output: str) -> None:
        super().__init__("any", output)
        self.args = (f"a GPU's free memory could not be read: {self.reason}",)


@dataclass
class Bags:
    """One table's part of a batch: rows of the table, and its bags as `torch.nn.EmbeddingBag` takes them."""

    num_embeddings: int
    indices: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shape: Shape, load: Load, seed: int = 0) -> Bags:
        """Draw the ids of a batch, each row being as likely."""
        indices = np.random.default_rng(seed).integers(0, shape.rows, load.entries)
        return cls(shape.rows, indices, np.arange(0, load.entries + 1, load.length))


@dataclass
class Cost:
    """Bytes of one kind: tables, gradients, state and checkpoint, counted, and the peak of a step, measured."""

    table_bytes: int
    gradient_bytes: int
    state_bytes: int
    peak_bytes: int
    checkpoint_bytes: int


def measure(
    kind: str,
    batch: Sequence[Bags],
    embedding_dim: int | Sequence[int],
    *,
    bits: int = 8,
    optimizer: str = "adagrad",
    bits_per_value: int = 1,
    code: str = "thermometer",
    device: str = "cpu",
    limit: int | None = None,
    stage: Callable[[str], None] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Cost:
    """Measure a training step of tables in a child process.

    Args:
        kind: one of `packedbag.report.kinds.registry.KEYS`.
        batch: one `Bags` for each table.
        embedding_dim: D, of all tables or of each.
        bits: of the packed counters.
        optimizer: of float tables.
        bits_per_value, code: how bits of packed tables make values.
        device: "cpu" or "cuda".
        limit: bytes that the step may take; None: `SHARE` of what is free.
        stage: called with a name of `STAGES` when the child begins with it.
        timeout: seconds after which the child is stopped.

    Raises:
        MeasurementError: the child failed, or there is too little memory to try.
    """
    options = {"bits": bits, "optimizer": optimizer, "bits_per_value": bits_per_value, "code": code}
    made = make_kind(kind, **options)  # type: ignore[arg-type]
    dims = [embedding_dim] * len(batch) if isinstance(embedding_dim, int) else list(embedding_dim)
    shapes = [Shape(bags.num_embeddings, dim) for bags, dim in zip(batch, dims, strict=True)]
    bags = max((len(each.offsets) - 1 for each in batch), default=0)
    entries = max((len(each.indices) for each in batch), default=0)
    need = made.costs(shapes, Load(bags, -(-entries // max(bags, 1)))).peak
    if limit is None:  # what is free is the reason then; a GPU is asked in a process of its own, which takes seconds
        free = free_bytes(device)
        limit, there = int(SHARE * free), f"{memory.human(free)} are free"
    else:
        there = f"{memory.human(limit)} are allowed"
    if need > limit:
        raise MeasurementError(kind, f"it takes about {memory.human(need)}, and {there}")
    order = {"kind": kind, "dims": dims, "options": options, "device": device}
    with tempfile.TemporaryDirectory(prefix="packedbag-") as folder:
        arrays = {f"indices{i}": each.indices for i, each in enumerate(batch)}
        arrays |= {f"offsets{i}": each.offsets for i, each in enumerate(batch)}
        rows = np.array([each.num_embeddings for each in batch], np.int64)
        path = Path(folder) / "batch.npz"
        np.savez(path, rows=rows, **arrays)  # type: ignore[arg-type]
        return Cost(**json.loads(_run(kind, [json.dumps(order), str(path)], stage, timeout)))


def free_bytes(device: str) -> int:
    """Return the memory that a machine's CPU or GPU can still give.

    Raises:
        GpuMemoryError: there is no such GPU.
    """
    if device == "cpu":
        return memory.available_bytes()
    # In a child, too: CUDA takes hundreds of megabytes of a GPU for each process that asks.
    code = "import torch; print(torch.cuda.mem_get_info()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GpuMemoryError(done.stderr)
    return int(done.stdout)


def _run(kind: str, arguments: list[str], stage: Callable[[str], None] | None, timeout: float) -> str:
    """Run the child to its end and return the last line that it printed."""
    command = [sys.executable, "-m", __spec__.name, *arguments]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        late = threading.Timer(timeout, child.kill)
        late.start()
        try:
            last = ""
            for line in child.stdout or ():
                if line.startswith(STAGE) and stage is not None:
                    stage(line.removeprefix(STAGE).rstrip())
                last = line
            child.wait()
        finally:  # Ctrl-C, too: a child may hold most of the machine
            in_time = late.is_alive()
            late.cancel()
            child.kill()
        if child.returncode:
            errors.seek(0)
            raise MeasurementError(kind, errors.read() if in_time else f"it took more than {timeout:.0f} s")
    return last


class Host:
    """Resident memory of this process, above what it was."""

    def __init__(self) -> None:
        self._before = memory.resident_bytes() if memory.reset_peak() else memory.peak_bytes()

    def peak(self) -> int:
        """Return the most that was held at once, in bytes."""
        return memory.peak_bytes() - self._before


class Gpu:
    """What torch's allocator has given out on the GPU, above what it had."""

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._cuda.synchronize()
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()
        self._before = int(self._cuda.memory_allocated())

    def peak(self) -> int:
        """Return the most that was held at once, in bytes."""
        self._cuda.synchronize()
        return int(self._cuda.max_memory_allocated()) - self._before


class Counter:
    """A file that keeps nothing but how much was written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        """Count ``data``."""
        length = memoryview(data).nbytes
        self.size += length
        return length

    def flush(self) -> None:
        """Do nothing."""


def saved_bytes(state: Any) -> int:
    """Return the size of the file that `torch.save` makes of ``state``."""
    import torch

    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)  # a checksum of what is thrown away
    counter = Counter()
    torch.save(state, counter)  # type: ignore[arg-type]
    return counter.size


def _give_memory_back() -> None:
    """Make blocks of a page or more come straight from the system and go straight back; a no-op without glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        for option, value in ((M_MMAP_THRESHOLD, PAGE), (M_TRIM_THRESHOLD, PAGE), (M_TOP_PAD, 0)):
            library.mallopt(option, value)
        library.malloc_trim(0)


def _die_first() -> None:
    """End with the parent, however it ends, and be the first to go where memory runs out."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _child(order: dict[str, Any], path: str) -> Cost:
    import torch

    def begin(name: str) -> None:
        print(STAGE + name, flush=True)

    def inputs(batch: Sequence[Bags]) -> list[tuple[Any, Any]]:
        arrays = [(each.indices, each.offsets) for each in batch]
        return [(torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)) for a, b in arrays]

    begin("start")
    device, dims = order["device"], order["dims"]
    kind = make_kind(order["kind"], **order["options"])
    tiny = Bags(8, np.arange(8, dtype=np.int64), np.arange(0, 9, 2, dtype=np.int64))
    warm_up = kind.make([Shape(8, dim) for dim in dims], inputs([tiny] * len(dims)), device)
    for _ in range(3):
        warm_up.backward()
        warm_up.update()
        warm_up.clear()
    del warm_up
    with np.load(path) as file:
        rows = file["rows"].tolist()
        batch = [Bags(v, file[f"indices{i}"], file[f"offsets{i}"]) for i, v in enumerate(rows)]
    given = inputs(batch)
    _give_memory_back()
    meter = Host() if device == "cpu" else Gpu()
    begin("build")
    live = kind.make([Shape(v, dim) for v, dim in zip(rows, dims, strict=True)], given, device)
    gradient = 0
    for step in (1, 2):
        begin(f"step {step}")
        live.backward()
        gradient = live.held()[1]
        live.update()
        live.clear()
    peak = meter.peak()
    begin("checkpoint")
    table, _, state = live.held()
    return Cost(table, gradient, state, peak, saved_bytes(live.checkpoint()))


if __name__ == "__main__":
    _die_first()
    print(json.dumps(vars(_child(json.loads(sys.argv[1]), sys.argv[2]))))
