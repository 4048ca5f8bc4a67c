"""Runs the command in a process of its own, as a user does."""

import os
import subprocess
import sys

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}


def start(*arguments, **environment):
    """Start ``packedbag`` with ``arguments`` and return the process."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "packedbag.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT, **environment},
    )


def run(*arguments, **environment):
    """Run ``packedbag`` to its end; return exit code, stdout and stderr."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
