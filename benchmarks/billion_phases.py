"""The phases of `billion.py`, each group in a process of its own, which prints one line of JSON a phase.

    python benchmarks/billion_phases.py {train,resume,serve} FOLDER SETTINGS

"train" makes a table, trains it, writes a checkpoint, goes on training, and exports. "resume" reads the checkpoint in
a new process and trains the same steps again. "serve" maps the exported file, without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from packedbag.report import memory

SAMPLE_SECONDS = 0.005
#: Bytes that are hashed or read at once.
PIECE_BYTES = 64 << 20
#: Steps after the checkpoint, which the resumed run repeats.
MORE_STEPS = 20
SERVED_BATCHES = 10
LR = 0.02
CHECKPOINT, EXPORT, EXPECTED = "checkpoint.pt", "table.safetensors", "expected.npy"
#: Served batches have numbers that no step has.
SERVED_FROM = 10**9


def indices(settings: dict[str, Any], number: int) -> Any:
    """Return batch ``number``, (bags, length) int64 uniform rows: the same in every process."""
    shape = settings["bags"], settings["length"]
    return np.random.default_rng([1, number]).integers(0, settings["rows"], shape)


class Meter:
    """Seconds and memory of phases, each printed as a line of JSON when it ends.

    "most_bytes" is VmHWM, exact: everything that is mapped and resident. It has two parts, sampled: "anon_bytes",
    which only the end of the process gives back, and "file_bytes", pages of mapped files, which the system drops when
    it needs them. Both are the most that was seen in the phase.
    """

    def __init__(self) -> None:
        self.most = {"RssAnon": 0, "RssFile": 0}
        self.stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        for line in memory.STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in self.most:
                self.most[name] = max(self.most[name], int(value.split()[0]) * 1024)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure the block; what it puts into the dictionary is printed with the rest."""
        facts: dict[str, Any] = {}
        exact = memory.reset_peak()
        self.most = dict.fromkeys(self.most, 0)
        start = time.perf_counter()
        yield facts
        seconds = time.perf_counter() - start
        self._sample()
        found = {"phase": name, "seconds": seconds, "most_bytes": memory.peak_bytes() if exact else None}
        found |= {"anon_bytes": self.most["RssAnon"], "file_bytes": self.most["RssFile"]}
        print(json.dumps(found | facts), flush=True)


def digest(arrays: list[Any]) -> str:
    """Return the SHA-256 of arrays, read in pieces."""
    found = hashlib.sha256()
    for array in arrays:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), PIECE_BYTES):
            found.update(flat[start : start + PIECE_BYTES])
    return found.hexdigest()


def contents(module: Any, optimizer: Any) -> list[Any]:
    """Return the table and its state as NumPy arrays that share their memory."""
    (state,) = optimizer.state.values()
    return [module.words.numpy(), *(state[name].numpy() for name in ("planes", "row_state") if name in state)]


def new_optimizer(module: Any, settings: dict[str, Any]) -> Any:
    from packedbag.optim import CounterSGD, packed_parameters

    adaptivity = settings["adaptivity"]
    return CounterSGD(packed_parameters(module), LR, bits=settings["bits"], adaptivity=adaptivity, decay=0.0, seed=0)


def steps(module: Any, optimizer: Any, settings: dict[str, Any], numbers: range) -> list[float]:
    """Train on the batches ``numbers``; return the seconds of each step, without the making of its batch."""
    import torch

    taken = []
    for number in numbers:
        batch = torch.from_numpy(indices(settings, number))
        grad = torch.randn(settings["bags"], settings["dim"], generator=torch.Generator().manual_seed(number))
        start = time.perf_counter()
        module(batch).backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    return taken


def describe(taken: list[float], settings: dict[str, Any]) -> dict[str, Any]:
    rows = settings["bags"] * settings["length"]
    median = float(np.median(taken))
    return {"steps": len(taken), "step_ms": 1e3 * median, "ns_a_row": 1e9 * median / rows}


def warm_up(settings: dict[str, Any]) -> None:
    """Take a step with a tiny table: torch imports half of itself with the first optimizer, in seconds."""
    from packedbag import PackedEmbeddingBag

    tiny = {**settings, "rows": 8}
    module = PackedEmbeddingBag(tiny["rows"], tiny["dim"])
    steps(module, new_optimizer(module, tiny), tiny, range(1))


def train(folder: Path, settings: dict[str, Any]) -> None:
    meter = Meter()
    with meter.phase("import, and train a tiny table"):
        import torch

        from packedbag import PackedEmbeddingBag, save
        from packedbag.io.atomic import replacing

        warm_up(settings)
        torch.manual_seed(0)
    with meter.phase("create the table") as facts:
        module = PackedEmbeddingBag(settings["rows"], settings["dim"])
        optimizer = new_optimizer(module, settings)
        facts["table_bytes"] = module.nbytes
    with meter.phase("first step, which makes the state") as facts:
        steps(module, optimizer, settings, range(1))
        facts["state_bytes"] = sum(array.nbytes for array in contents(module, optimizer)[1:])
    with meter.phase(f"train {settings['steps'] - 1} steps") as facts:
        facts |= describe(steps(module, optimizer, settings, range(1, settings["steps"])), settings)
    with meter.phase("write the checkpoint") as facts:
        torch.serialization.set_crc32_options(False)  # computing it takes longer than writing to a fast disk
        with replacing(folder / CHECKPOINT) as file:
            torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
        facts["disk_bytes"] = (folder / CHECKPOINT).stat().st_size
    with meter.phase(f"train {MORE_STEPS} steps more") as facts:
        more = range(settings["steps"], settings["steps"] + MORE_STEPS)
        facts |= describe(steps(module, optimizer, settings, more), settings)
    with meter.phase("hash table and state") as facts:
        facts["digest"] = digest(contents(module, optimizer))
    with meter.phase("export the table") as facts:
        save(module.to_table(), folder / EXPORT)
        facts["disk_bytes"] = (folder / EXPORT).stat().st_size
    with torch.no_grad():
        batches = [module(torch.from_numpy(indices(settings, SERVED_FROM + n))) for n in range(SERVED_BATCHES)]
    np.save(folder / EXPECTED, torch.stack(batches).numpy())


def resume(folder: Path, settings: dict[str, Any]) -> None:
    meter = Meter()
    with meter.phase("import, and train a tiny table"):
        import torch

        from packedbag import PackedEmbeddingBag

        warm_up(settings)
    with meter.phase("read the checkpoint: the table"):
        saved = torch.load(folder / CHECKPOINT, mmap=True, weights_only=True)
        module = PackedEmbeddingBag(settings["rows"], settings["dim"], device="meta")
        module.load_state_dict(saved["model"])
        del saved  # the file's pages count as resident while it is mapped
    with meter.phase("read the checkpoint: the state"):
        saved = torch.load(folder / CHECKPOINT, mmap=True, weights_only=True)
        optimizer = new_optimizer(module, settings)
        optimizer.load_state_dict(saved["optimizer"])
        del saved
    with meter.phase(f"train the same {MORE_STEPS} steps") as facts:
        more = range(settings["steps"], settings["steps"] + MORE_STEPS)
        facts |= describe(steps(module, optimizer, settings, more), settings)
    with meter.phase("hash table and state again") as facts:
        facts["digest"] = digest(contents(module, optimizer))


def forget_cached(path: Path) -> None:
    """Ask the system to drop its cached pages of a file, so that the next read is the disk's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def serve(folder: Path, settings: dict[str, Any]) -> None:
    from packedbag import load

    meter = Meter()
    forget_cached(folder / EXPORT)
    expected = np.load(folder / EXPECTED)
    batches = [indices(settings, SERVED_FROM + n) for n in range(SERVED_BATCHES)]
    with meter.phase("map the exported file"):
        table = load(folder / EXPORT)
    with meter.phase("serve one bag, from the disk") as facts:
        facts["same"] = bool(np.array_equal(table.bag(batches[0][:1]), expected[0][:1]))
    with meter.phase("serve one batch, from the disk") as facts:
        facts["same"] = bool(np.array_equal(table.bag(batches[0]), expected[0]))
    with meter.phase("read the file into the cache"):
        flat = table.words.reshape(-1)
        for start in range(0, len(flat), PIECE_BYTES // 4):
            flat[start : start + PIECE_BYTES // 4].max()
    with meter.phase(f"serve {SERVED_BATCHES} batches, from the cache") as facts:
        taken, same = [], True
        for batch, right in zip(batches, expected, strict=True):
            start_time = time.perf_counter()
            found = table.bag(batch)
            taken.append(time.perf_counter() - start_time)
            same &= bool(np.array_equal(found, right))
        median = float(np.median(taken))
        facts |= {"same": same, "ns_a_row": 1e9 * median / batches[0].size, "without_torch": "torch" not in sys.modules}


if __name__ == "__main__":
    group, where, given = sys.argv[1:]
    {"train": train, "resume": resume, "serve": serve}[group](Path(where), json.loads(given))
