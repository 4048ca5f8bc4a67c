"""Runs a grid: what has a result is skipped, what fails is reported, and the rest goes on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import packedbag
from benchmarks.memory import processor
from benchmarks.quality import results
from benchmarks.quality.config import Config, listed
from benchmarks.quality.data import registry
from benchmarks.quality.data.click_data import ClickData, MissingDataError
from benchmarks.quality.run import Run
from packedbag import backends

ROOT = Path(__file__).parents[2]
Say = Callable[[str], None]


class FailedError(Exception):
    """A run did not come to its end; the message is the last line it wrote."""


@dataclass
class Outcome:
    """Which runs were done before, are done now, failed, or had no data."""

    skipped: list[Config] = field(default_factory=list)
    done: list[Config] = field(default_factory=list)
    failed: list[Config] = field(default_factory=list)
    without_data: list[Config] = field(default_factory=list)


class Data:
    """The data sets of this process, read once."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._read: dict[str, ClickData | MissingDataError] = {}

    def get(self, config: Config) -> ClickData:
        """Return the data of a run, or raise `MissingDataError`."""
        name = json.dumps([config.data, dict(config.data_options)], sort_keys=True)
        if name not in self._read:
            try:
                self._read[name] = registry.load(config.data, self._path, config.data_options)
            except MissingDataError as error:
                self._read[name] = error
        found = self._read[name]
        if isinstance(found, MissingDataError):
            raise found
        return found


def machine(jobs: int) -> dict[str, Any]:
    """Return what numbers belong to: ``jobs`` runs shared the machine, one thread each."""
    return {
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "packedbag": packedbag.__version__,
        "backend": backends.select("cpu").name,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "jobs": jobs,
    }


def run_grid(
    configs: Iterable[Config], path: Path, *, data_path: str | None = None, jobs: int = 1, say: Say = print
) -> Outcome:
    """Run what has no result in ``path`` yet.

    Args:
        configs: the grid.
        path: of the results.
        data_path: of data that are no part of the tree.
        jobs: runs at once, each in a process of its own; 0: all in this process, one after another.
        say: told what happens.
    """
    outcome = Outcome()
    data = Data(data_path)
    todo = []
    done = {entry["key"] for entry in results.read(path, say)}
    for config in {config.key: config for config in configs}.values():
        if config.key in done:
            outcome.skipped.append(config)
            continue
        try:
            data.get(config)
        except MissingDataError as error:
            if not outcome.without_data:
                say(f"skipped: {error}")
            outcome.without_data.append(config)
            continue
        todo.append(config)
    say(f"{len(todo)} runs to do, {len(outcome.skipped)} done before, {len(outcome.without_data)} without data")
    facts = machine(jobs)

    def one(config: Config) -> None:
        # Another process may fill the same file.
        if not results.missing([config], results.read(path, lambda line: None)):
            outcome.skipped.append(config)
            return
        try:
            found = _child(config, data_path) if jobs else Run(config, data.get(config)).train()
        except Exception as error:
            outcome.failed.append(config)
            say(f"FAILED {config.key} {config.named()}: {type(error).__name__}: {error}")
            return
        results.append(path, config, {**found, "machine": facts})
        outcome.done.append(config)
        say(
            f"{len(outcome.done) + len(outcome.failed)}/{len(todo)} {config.key} {config.named()}: "
            f"AUC {found['test_auc']:.5f}, log loss {found['test_log_loss']:.4f}, {found['training_bits']:.3f} bits a "
            f"weight, {found['seconds']:.0f} s; {listed(config.details())}"
        )

    if jobs:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, todo))
    else:
        for config in todo:
            one(config)
    return outcome


def child(data_path: str | None) -> None:
    """Read a run from standard input, do it on one thread, and print its result as the last line."""
    torch.set_num_threads(1)
    config = Config.from_plain(json.load(sys.stdin))
    data = registry.load(config.data, data_path, config.data_options)
    print(json.dumps(Run(config, data).train(), allow_nan=False))


def _child(config: Config, data_path: str | None) -> dict[str, Any]:
    """Do a run in a process of its own: its peak memory is its own, and what kills it kills nothing else."""
    command = [sys.executable, "-m", "benchmarks.quality", "one"]
    command += [] if data_path is None else ["--data-path", str(Path(data_path).absolute())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        input=json.dumps(config.plain()),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exit status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _commit() -> str:
    """Return the checkout's commit, with + where files differ from it; or "unknown"."""
    try:
        command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
