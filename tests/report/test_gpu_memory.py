"""The child that measures on a GPU, run where there is none: see `tests.report.counted_gpu`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packedbag.backends.cupy_record import Record
from packedbag.core.errors import IndexRangeError
from packedbag.optim.device_control import DeviceControl
from packedbag.report import step_memory
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import make_kind
from packedbag.report.step_memory import Bags, Cost
from tests.cuda_on_cpu import machine
from tests.report.counted_gpu import CountedGpu, NotTheCpu

SHAPES = [Shape(30_000, 64), Shape(3, 40)]
LOAD = Load(64, 20)
MADE = [
    ("fp32", {}),
    ("fp32", {"optimizer": "adam"}),
    ("fp16", {"optimizer": "rowwise-adagrad"}),
    ("int8", {}),
    ("char", {}),
    *(("packed", {"bits": bits}) for bits in (8, 1)),
    ("packed", {"bits": 8, "bits_per_value": 4}),
    ("packed", {"bits": 2, "bits_per_value": 4, "code": "binary"}),
    ("packed", {"bits": 1, "bits_per_value": 8, "code": "binary"}),
]
#: The stand-in is the CPU: with a GPU its child runs as it is.
pytestmark = pytest.mark.host(emulated=True)
needs_emulator = pytest.mark.skipif(machine.missing() is not None, reason=f"the emulator of CUDA: {machine.missing()}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CountedGpu:
    counted = CountedGpu()
    counted.stands_for(torch.cuda, monkeypatch.setattr)
    monkeypatch.setattr(step_memory, "_give_memory_back", lambda: None)  # it is this process's
    monkeypatch.setattr(step_memory, "print", lambda text, flush: counted.calls.append(text), raising=False)
    return counted


def child(gpu: CountedGpu, kind: str, batch: list[Bags], folder: Path, **options: Any) -> Cost:
    """Run what the child runs, on the stand-in."""
    arrays = {f"{name}{i}": getattr(bags, name) for i, bags in enumerate(batch) for name in ("indices", "offsets")}
    np.savez(folder / "batch.npz", rows=np.array([bags.num_embeddings for bags in batch]), **arrays)
    order = {"kind": kind, "dims": [shape.dim for shape in SHAPES[: len(batch)]], "options": options}
    serving = machine.serving_the_cpu() if kind == "packed" else contextlib.nullcontext()
    with serving, gpu:
        return step_memory._child({**order, "device": NotTheCpu("cpu")}, str(folder / "batch.npz"))


@needs_emulator
@pytest.mark.parametrize(("kind", "options"), MADE, ids=lambda value: str(value).strip("{}"))
def test_a_gpus_tables_take_what_the_formulas_say(
    gpu: CountedGpu, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    batch = [Bags.of(shape, LOAD, seed) for seed, shape in enumerate(SHAPES)]
    measured = child(gpu, kind, batch, tmp_path, **options)
    computed = make_kind(kind, **options).costs(SHAPES, LOAD)
    assert measured.table_bytes == computed.table
    assert computed.state <= measured.state_bytes <= computed.state + 4 * len(SHAPES)
    assert measured.peak_bytes == pytest.approx(computed.peak, rel=0.1, abs=200_000)
    assert measured.peak_bytes >= measured.table_bytes + measured.state_bytes


def test_the_peak_is_that_from_before_the_tables_to_after_the_second_step(gpu: CountedGpu, tmp_path: Path) -> None:
    child(gpu, "char", [Bags.of(SHAPES[0], LOAD)], tmp_path)
    begun = [call.removeprefix(step_memory.STAGE) for call in gpu.calls]
    before = ["start", "synchronize", "empty_cache", "reset_peak_memory_stats", "memory_allocated"]
    after = ["synchronize", "max_memory_allocated", "checkpoint"]
    assert begun == [*before, "build", "step 1", "step 2", *after]


@needs_emulator
def test_a_batch_that_a_gpu_refuses_is_not_measured(
    gpu: CountedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU may be so far behind that no call sees a flag of its by chance: only those that wait for it do.
    waited: list[torch.device] = []
    monkeypatch.setattr(machine.EmulatedMachine, "synchronize", lambda self, device: waited.append(device))
    monkeypatch.setattr(Record, "pending", property(lambda record: bool(waited) and bool(record.flag[0])))
    monkeypatch.setattr(DeviceControl, "pending", False)
    with pytest.raises(IndexRangeError, match=r"indices\[0\] is 9"):
        child(gpu, "packed", [Bags(4, np.array([9]), np.array([0, 1]))], tmp_path)


def test_the_stand_in_counts_what_lives() -> None:
    gpu = CountedGpu()
    with gpu:
        kept = torch.zeros(1000)
        view = kept[10:].view(-1)
        gone = kept + 1
        assert gpu._held == 2 * 4096
        del gone
        assert gpu._held == 4096
        del kept
        assert gpu._held == 4096  # the view holds it
        del view
        assert gpu._held == 0
        assert gpu._peak == 2 * 4096
