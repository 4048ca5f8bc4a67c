"""`packedbag.report.step_memory`."""

import json
import subprocess

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError
from packedbag.report import memory, step_memory
from packedbag.report.kinds.char import CHAR_STATE_BYTES, CharTable
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.step_memory import (
    STAGES,
    Bags,
    Cost,
    Gpu,
    GpuMemoryError,
    MeasurementError,
    free_bytes,
    measure,
    saved_bytes,
)

ROWS, DIM = 200_000, 32
WEIGHTS = ROWS * DIM


@pytest.fixture(scope="module")
def costs():
    rng = np.random.default_rng(0)
    batch = [Bags(ROWS, rng.integers(0, ROWS, 640), np.arange(0, 641, 10))]
    return {kind: measure(kind, batch, DIM) for kind in ("packed", "char", "fp32")}


def test_tables_take_1_8_and_32_bits_a_weight(costs):
    assert [costs[k].table_bytes * 8 / WEIGHTS for k in ("packed", "char", "fp32")] == [1, 8, 32]


def test_state_is_counted_from_live_tensors(costs):
    assert costs["packed"].state_bytes == WEIGHTS * 7 // 8 + ROWS * 4 + 64  # the totals of the table
    assert costs["char"].state_bytes == WEIGHTS * CHAR_STATE_BYTES
    assert costs["fp32"].state_bytes == WEIGHTS * 4 + 4


def test_the_peak_holds_tables_and_state_and_what_a_step_needs(costs):
    for cost in costs.values():
        assert cost.peak_bytes > 0.97 * (cost.table_bytes + cost.state_bytes)
    # A boolean step holds the table, a boolean gradient, a float state, and a float gradient: 10 bytes a weight.
    assert 9.5 < costs["char"].peak_bytes / WEIGHTS < 11.5
    # A packed step holds nothing of the table's size but table and state; 10 MB are for the batch and its rows.
    assert costs["packed"].peak_bytes < costs["packed"].table_bytes + costs["packed"].state_bytes + 10_000_000
    assert costs["packed"].peak_bytes < costs["fp32"].peak_bytes < costs["char"].peak_bytes


def test_a_char_step_flips_rows_of_the_batch_alone():
    torch.manual_seed(0)
    table = CharTable(50, 8, device=str(torch.empty(0).device))
    before = table.weight.clone()
    for _ in range(10):  # the average of a gradient that is always there passes one half at the seventh step
        table.step(torch.tensor([3, 4, 4, 9]), torch.tensor([0, 2, 4]))
    changed = (before != table.weight).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {3, 4, 9}
    assert table.grad.dtype == torch.bool
    assert table.grad[[3, 4, 9]].all()
    assert int(table.grad.sum()) == 3 * 8


def test_a_child_says_what_it_does_and_counts_what_it_saves():
    stages = []
    batch = [Bags.of(Shape(1000, 64), Load(8, 4))]
    cost = measure("packed", batch, 64, bits=2, stage=stages.append)
    assert stages == list(STAGES)
    assert cost.gradient_bytes == 16 * 32 + 4 * 8 * (64 + 1)
    assert 0 <= cost.checkpoint_bytes - cost.table_bytes - cost.state_bytes < 10_000


def test_a_child_that_takes_too_long_is_stopped():
    with pytest.raises(MeasurementError, match="it took more than 0 s"):
        measure("packed", [Bags.of(Shape(1000, 64), Load(8, 4))], 64, timeout=0.1)


def test_an_interruption_ends_the_child(monkeypatch):
    started = []
    popen = subprocess.Popen

    def remembered(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        measure("packed", [Bags.of(Shape(1000, 64), Load(8, 4))], 64, stage=interrupted)
    assert [child.poll() for child in started] == [-9]


def test_a_limit_of_the_callers_is_kept():
    batch = [Bags.of(Shape(100_000, 64), Load(8, 4))]
    with pytest.raises(MeasurementError, match="it takes about 64 MB, and 60 MB are allowed"):
        measure("char", batch, 64, limit=60_000_000)


def test_the_bytes_of_a_checkpoint_are_those_of_its_file(tmp_path):
    state = {"weight": torch.zeros(1000, 3), "more": [torch.ones(7, dtype=torch.uint8)]}
    torch.save(state, tmp_path / "c.pt")
    assert saved_bytes(state) == pytest.approx((tmp_path / "c.pt").stat().st_size, abs=300)


def test_a_gpus_peak_is_that_of_the_allocator_above_what_it_had(monkeypatch):
    seen = []
    cuda = torch.cuda
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(cuda, name, lambda name=name: seen.append(name))
    monkeypatch.setattr(cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda: 1100)
    assert Gpu().peak() == 1000
    assert seen == ["synchronize", "empty_cache", "reset_peak_memory_stats", "synchronize"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(GpuMemoryError, match=r"^a GPU's free memory could not be read: .*(CUDA|NVIDIA)"):
        free_bytes("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_child_that_finds_no_gpu_says_so_in_a_line():
    with pytest.raises(MeasurementError, match=r"with fp32 tables could not be measured: .*(CUDA|NVIDIA)") as caught:
        measure("fp32", [Bags.of(Shape(1000, 64), Load(8, 4))], 64, device="cuda", limit=10**9)
    assert "\n" not in str(caught.value)


def test_a_child_is_told_of_the_gpu_and_a_gpu_with_a_limit_is_not_asked_what_is_free(monkeypatch):
    told = []

    def ran(kind, arguments, stage, timeout):
        told.append(json.loads(arguments[0]))
        return json.dumps(vars(Cost(1, 2, 3, 4, 5)))

    monkeypatch.setattr(step_memory, "_run", ran)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("the GPU was asked"))
    batch = [Bags.of(Shape(1000, 64), Load(8, 4))]
    assert measure("packed", batch, 64, bits=4, device="cuda", limit=10**9) == Cost(1, 2, 3, 4, 5)
    options = {"bits": 4, "optimizer": "adagrad", "bits_per_value": 1, "code": "thermometer"}
    assert told == [{"kind": "packed", "dims": [64], "options": options, "device": "cuda"}]


def test_a_child_that_fails_is_reported():
    batch = [Bags(4, np.array([9]), np.array([0, 1]))]
    with pytest.raises(MeasurementError, match=r"a step with packed tables could not be measured: .*indices\[0\] is 9"):
        measure("packed", batch, DIM)


def test_tables_that_would_fill_the_machine_are_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000_000)
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    batch = [Bags(1_000_000, np.array([0]), np.array([0, 1]))]
    with pytest.raises(MeasurementError, match=r"char tables could not .*: it takes about 640 MB, and 1 GB are free"):
        measure("char", batch, 64)
    assert started == []


def test_an_unknown_kind_is_refused():
    with pytest.raises(ArgumentError, match="kind is 'int4'; it must be one of fp32, fp16, int8, char, packed"):
        measure("int4", [], DIM)
