"""A real run that is stopped or killed half way, and resumed, ends as one that never was."""

import json
import signal
import time

import numpy as np
import pytest
import torch

from packedbag.recsys import checkpoint
from tests.cli.command import run, start

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

EPOCHS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """6000 rows: some 75 steps an epoch."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    users, items = rng.integers(0, 60, 6000), rng.integers(0, 90, 6000)
    clicks = rng.random(6000) < 0.2 + 0.6 * ((users + items) % 2)
    rows = zip(clicks, users, items, strict=True)
    path.write_text("y,user,item\n" + "".join(f"{int(c)},u{u},i{i}\n" for c, u, i in rows))
    return path


def arguments(data, output):
    model = ("--embedding-dim", 64, "--hidden", "64,32", "--batch-size", 64, "--epochs", EPOCHS, "--patience", EPOCHS)
    columns = ("--data", data, "--label", "y", "--categorical", "user,item")
    return ("train", "csv", *columns, *model, "--checkpoint-steps", 10, "--no-memory", "--output", output)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The output of a run that nothing disturbed, and what it printed."""
    output = tmp_path_factory.mktemp("whole")
    code, out, err = run(*arguments(data, output))
    assert code == 0, err
    return output, out


def disturb(process, path, number):
    """Send signal ``number`` once the checkpoint at ``path`` has appeared; return exit code, stdout, stderr."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def states(output):
    """Everything in the checkpoints but the time taken."""
    found = {}
    for name in ("checkpoint.pt", "best.pt"):
        state = checkpoint.load(output / "packed" / name)
        state.get("progress", {}).pop("seconds", None)
        found[name] = flat(state)
    return found


def flat(value):
    if isinstance(value, dict):
        return {k: flat(v) for k, v in value.items()}
    if isinstance(value, list):
        return [flat(v) for v in value]
    return (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) if torch.is_tensor(value) else value


def logged(output):
    """The lines of the log, without what a machine needs for the same work."""
    lines = [json.loads(line) for line in (output / "packed" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    return [{k: v for k, v in line.items() if "second" not in k and k != "resident_bytes"} for line in lines]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "int"])
def test_a_disturbed_run_resumes_to_the_same_bits(data, whole, tmp_path, number, code):
    path = tmp_path / "packed" / "checkpoint.pt"
    found, out, err = disturb(start(*arguments(data, tmp_path)), path, number)
    assert found == code
    assert out == ""
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert "Continue with the same command and --resume" in err
    progress = checkpoint.load(path)["progress"]
    assert progress["steps"] > 0
    assert progress["epoch"] < EPOCHS
    resumed, out, err = run(*arguments(data, tmp_path), "--resume")
    assert resumed == 0, err
    output, expected = whole
    assert states(tmp_path) == states(output)
    assert logged(tmp_path) == logged(output)
    assert out == expected
    tables = sorted((output / "packed" / "tables").iterdir())
    assert len(tables) == 4
    for table in tables:
        assert (tmp_path / "packed" / "tables" / table.name).read_bytes() == table.read_bytes()
