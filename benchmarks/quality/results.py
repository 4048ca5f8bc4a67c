"""The results of runs, one JSON line each, in a file that is only ever appended to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.config import Config


def read(path: Path, note: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Return the results in ``path``, each {key, config, result}; none where there is no file.

    A line that is no whole result, as a killed machine leaves it, is left out; ``note`` is told.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not {"key", "config", "result"} <= entry.keys():
                raise ValueError("it lacks key, config or result")
        except (ValueError, AttributeError) as error:
            note(f"{path.name}, line {number}, is no whole result and is skipped ({error})")
            continue
        found.append(entry)
    return found


def append(path: Path, config: Config, result: dict[str, Any]) -> None:
    """Add a result, on disk when this returns; several processes may do so at once."""
    line = json.dumps(
        {"key": config.key, "config": config.plain(), "result": result}, separators=(",", ":"), allow_nan=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def missing(configs: Iterable[Config], entries: Iterable[dict[str, Any]]) -> list[Config]:
    """Return the runs that have no result."""
    done = {entry["key"] for entry in entries}
    return [config for config in configs if config.key not in done]
