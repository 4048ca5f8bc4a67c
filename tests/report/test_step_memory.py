"""`packedbag.report.step_memory`."""

import subprocess

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError
from packedbag.report import memory
from packedbag.report.kinds.char import CHAR_STATE_BYTES, CharTable
from packedbag.report.step_memory import Bags, MeasurementError, measure

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
    table = CharTable(50, 8)
    before = table.weight.clone()
    for _ in range(10):  # the average of a gradient that is always there passes one half at the seventh step
        table.step(torch.tensor([3, 4, 4, 9]), torch.tensor([0, 2, 4]))
    changed = (before != table.weight).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {3, 4, 9}
    assert table.grad.dtype == torch.bool
    assert table.grad[[3, 4, 9]].all()
    assert int(table.grad.sum()) == 3 * 8


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
