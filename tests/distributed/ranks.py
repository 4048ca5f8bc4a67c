"""Runs the checks of a module on several processes, once, whatever number of tests asks."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Seconds until ranks that wait for each other are ended.
LIMIT = 180
REASON = "TorchRec is not installed; run: make test-distributed"


def environment_of(world: int, per_node: int) -> dict[str, str]:
    """Return the environment of a rank: gloo on the loopback, as many ranks on a node as said."""
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(per_node)}
    return {**os.environ, **sizes, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@functools.cache
def run(
    module: str, world: int, per_node: int | None = None, environment: tuple[tuple[str, str], ...] = ()
) -> list[dict[str, str]]:
    """Return what each rank says of each check of ``module``: "ok", or a traceback.

    The module's ``checks(rank, world, folder)`` returns functions by name, which all ranks run in order.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "tests.distributed.worker", module]
        said = folder / "said.txt"
        with said.open("w") as output:
            ranks = [
                subprocess.Popen(
                    [*command, str(rank), str(world), name],
                    cwd=ROOT,
                    env={**environment_of(world, per_node or world), **dict(environment), "RANK": str(rank)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(world)
            ]
            try:
                for rank in ranks:
                    rank.wait(LIMIT)
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
        files = [folder / f"{rank}.json" for rank in range(world)]
        lost = {"a rank ended without a word": said.read_text()[-4000:]}
        return [json.loads(file.read_text()) if file.exists() else lost for file in files]


def assert_ok(
    module: str,
    check: str,
    world: int,
    per_node: int | None = None,
    environment: tuple[tuple[str, str], ...] = (),
) -> None:
    """Fail with what the ranks said unless all of them passed ``check``."""
    pytest.importorskip("torchrec.distributed", reason=REASON)
    for rank, said in enumerate(run(module, world, per_node, environment)):
        if check not in said:
            pytest.fail(f"rank {rank} did not get so far: {list(said)[-1]} failed", pytrace=False)
        if said[check] != "ok":
            pytest.fail(f"rank {rank}: {said[check]}", pytrace=False)


def assert_all_ok(
    module: str, world: int, per_node: int | None = None, environment: tuple[tuple[str, str], ...] = ()
) -> int:
    """Fail unless all ranks passed all checks of ``module``; return how many there are."""
    pytest.importorskip("torchrec.distributed", reason=REASON)
    said = run(module, world, per_node, environment)
    for rank, each in enumerate(said):
        for check, text in each.items():
            if text != "ok":
                pytest.fail(f"rank {rank}, {check}: {text}", pytrace=False)
    return len(said[0])
