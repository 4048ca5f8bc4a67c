"""What `packedbag compare --device cuda` measures: by the allocator of a real GPU, beside the formulas."""

from __future__ import annotations

import pytest

from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import KEYS, make_kind
from packedbag.report.step_memory import Bags, free_bytes, measure

SHAPES = [Shape(1_000_000, 128), Shape(200_000, 64)]
LOAD = Load(2048, 20)


@pytest.mark.parametrize("kind", KEYS)
def test_a_gpus_peak_is_near_what_the_formula_says(kind: str) -> None:
    batch = [Bags.of(shape, LOAD, seed) for seed, shape in enumerate(SHAPES)]
    stages: list[str] = []
    measured = measure(kind, batch, [shape.dim for shape in SHAPES], device="cuda", stage=stages.append)
    computed = make_kind(kind, bits=8, optimizer="adagrad").costs(SHAPES, LOAD)
    assert measured.table_bytes == computed.table
    assert measured.peak_bytes >= measured.table_bytes + measured.state_bytes
    # What sorting takes inside a step is in no formula.
    assert measured.peak_bytes == pytest.approx(computed.peak, rel=0.15, abs=64_000_000)
    assert stages[0] == "start"


def test_a_gpus_free_memory_is_asked_for() -> None:
    assert 0 < free_bytes("cuda") < 1 << 40
