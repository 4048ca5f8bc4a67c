"""``torchrun -m packedbag train --sharding``: as a user starts it, and what is left when a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packedbag
from tests.distributed.ranks import REASON, ROOT, environment_of

#: Seconds until a run is given up.
LIMIT = 150
FIELDS = ("item", "user", "device")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose label a user's and an item's number decide: something to learn."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    item, user, device = rng.integers(0, 300, 6000), rng.integers(0, 200, 6000), rng.integers(0, 5, 6000)
    clicked = (item * 7 % 11 + user * 5 % 13 + rng.integers(0, 6, 6000)) > 13
    rows = zip(clicked.astype(int), item, user, device, strict=True)
    path.write_text("clicked,item,user,device\n" + "".join(f"{c},i{i},u{u},d{d}\n" for c, i, u, d in rows))
    return path


def start(
    clicks: Path,
    output: Path,
    ranks: int,
    *options: str,
    torchrun: tuple[str, ...] = (),
    module: str = "packedbag",
) -> subprocess.Popen[str]:
    pytest.importorskip("torchrec.distributed", reason=REASON)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *torchrun]
    data = ["--data", str(clicks), "--label", "clicked", "--categorical", ",".join(FIELDS)]
    sizes = ["--embedding-dim", "64", "--batch-size", "100", "--epochs", "2", "--hidden", "16", "--no-memory"]
    command = [*launcher, "-m", module, "train", "csv", *data, *sizes, "--output", str(output), *options]
    environment = {k: v for k, v in environment_of(ranks, ranks).items() if k not in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(run: subprocess.Popen[str]) -> str:
    try:
        said, _ = run.communicate(timeout=LIMIT)
    finally:
        run.kill()
    return said


def trained(clicks: Path, output: Path, ranks: int, *options: str, **more: Any) -> dict[str, Any]:
    run = start(clicks, output, ranks, "--json", str(output.with_suffix(".json")), *options, **more)
    said = finish(run)
    assert run.returncode == 0, said
    assert "Warning" not in said, said
    assert "Traceback" not in said, said
    return json.loads(output.with_suffix(".json").read_text())


def tables(output: Path) -> list[np.ndarray]:
    return [np.array(packedbag.load(output / f"packed/tables/{name}.safetensors").words) for name in FIELDS]


@pytest.fixture(scope="module")
def by_row(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "row"
    found = trained(clicks, output, 2, "--sharding", "row")
    assert next(line for line in found["lines"] if line["kind"] == "packed")["auc"] > 0.6
    return output


@pytest.mark.parametrize("sharding", ["table", "column", "auto"])
def test_every_sharding_trains_the_same_tables(clicks: Path, by_row: Path, tmp_path: Path, sharding: str) -> None:
    trained(clicks, tmp_path / "run", 2, "--sharding", sharding)
    for found, expected in zip(tables(tmp_path / "run"), tables(by_row), strict=True):
        assert (found == expected).all()


ROW_WISE = "tests.distributed.row_wise_train"
#: Rows of a step, which have to divide those that are trained on, or else two ranks would leave some out.
EVEN = 90
#: What is dense, the tables' scales, stays as it is: ranks add up its gradients in another order.
NUMBERS = ("--code", "binary", "--bits-per-value", "4", "--bits", "2", "--lr", "0", "--batch-size", str(EVEN))


@pytest.fixture(scope="module")
def of_one_process(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The tables of a run of one process, whose values are binary numbers."""
    output = tmp_path_factory.mktemp("runs") / "one"
    found = trained(clicks, output, 1, "--sharding", "table", *NUMBERS, module=ROW_WISE)
    assert found["rows"]["train"] % EVEN == 0
    assert next(line for line in found["lines"] if line["kind"] == "packed")["auc"] > 0.6
    return tables(output)


@pytest.mark.parametrize("sharding", ["table", "row", "column"])
def test_ranks_train_binary_numbers_as_one_process_does(
    clicks: Path, of_one_process: list[np.ndarray], tmp_path: Path, sharding: str
) -> None:
    trained(clicks, tmp_path / "run", 2, "--sharding", sharding, *NUMBERS, module=ROW_WISE)
    for found, expected in zip(tables(tmp_path / "run"), of_one_process, strict=True):
        assert (found == expected).all()


def test_a_run_goes_on_with_another_number_of_ranks(clicks: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    trained(clicks, output, 2, "--sharding", "row", "--epochs", "1")
    trained(clicks, output, 1, "--sharding", "table", "--epochs", "2", "--resume")
    lines = (output / "packed/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def workers_of(run: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(child) for child in children]


def kill_one(run: subprocess.Popen[str], output: Path) -> None:
    """Kill a rank, without a chance to say goodbye, once there is a checkpoint."""
    checkpoint = output / "packed/checkpoint/whole.pt"
    ends = time.monotonic() + LIMIT
    while not checkpoint.exists() and run.poll() is None and time.monotonic() < ends:
        time.sleep(0.02)
    assert run.poll() is None, finish(run)
    os.kill(workers_of(run)[-1], signal.SIGKILL)


def test_a_killed_rank_ends_the_others_with_a_message(clicks: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run = start(
        clicks, output, 2, "--sharding", "table", "--epochs", "500", "--checkpoint-steps", "5", "--timeout", "20"
    )
    kill_one(run, output)
    said = finish(run)
    assert run.returncode != 0
    assert "another process of this run is gone or stuck" in said, said
    assert "checkpoint is whole: go on with --resume" in said.replace("\n", " "), said
    assert not [each for each in (output / "packed").iterdir() if each.name.endswith((".old", ".tmp"))]


def test_a_restarted_run_equals_one_that_was_not_disturbed(clicks: Path, by_row: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("--sharding", "row", "--checkpoint-steps", "3", "--timeout", "20")
    run = start(clicks, output, 2, *options, torchrun=("--max-restarts=2",))
    kill_one(run, output)
    said = finish(run)
    assert run.returncode == 0, said
    for found, expected in zip(tables(output), tables(by_row), strict=True):
        assert (found == expected).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sharding", "rows"), "--sharding is 'rows'; it must be table, row, column, auto"),
        (("--sharding", "row"), "--sharding is row in a single process; it must be run by torchrun"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "packedbag", "train", "csv", "--data", "none.csv", "--label", "x", *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert run.returncode == 2, run.stderr
    assert message in run.stderr.replace("\n", " ")
