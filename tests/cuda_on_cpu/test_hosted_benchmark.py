"""The whole benchmark of a GPU on devices in the host's memory: graphs, checks, the page. Its times mean nothing.

Needs ``pytest --hosted``: `make test-hosted`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import capacity
from benchmarks.gpu.peers import ceiling
from tests.devices import hosted

pytestmark = pytest.mark.skipif(not hosted(), reason="pytest --hosted gives torch the devices")

#: What the devices do not have: sparse tensors; FBGEMM's operators for CUDA.
ABSENT = ("SparseAdam", "FBGEMM")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_part_runs_and_is_what_the_oracle_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "BAGS", 64)
    few = ceiling.plans(5, 4)[::40]
    monkeypatch.setattr(ceiling, "plans", lambda length, width: few)
    shapes = ["--shapes", "300x128x12x5", "300x128x1x5", "--sets", "3", "--seconds", "0", "--rows", "1000"]
    numbers, page = tmp_path / "n.json", tmp_path / "n.md"
    assert benchmark.main([*shapes, "--json", str(numbers), "--page", str(page)]) == 0
    found = json.loads(numbers.read_text())
    assert found["errors"] == {}
    assert found["capacity"]["compared_rows"] > 500
    measured = found["forward"] + found["step"] + found["latency"]
    failed = {name: why for result in measured for name, why in result["failed"].items()}
    assert [name for name in failed if not any(part in name for part in ABSENT)] == [], failed
    assert "gather ceiling" in found["forward"][0]["captured"]
    assert page.read_text().startswith("# ")
