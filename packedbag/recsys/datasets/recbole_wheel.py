"""MovieLens-100k as RecBole 1.2.1 ships it in its wheel: fetched by pip, checked, cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

from packedbag.core.errors import DataError
from packedbag.io.atomic import replacing

REQUIREMENT = "recbole==1.2.1"
FILE = "recbole-1.2.1-py3-none-any.whl"
SIZE = 2_130_151
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"

#: Where downloads are kept; by default below XDG_CACHE_HOME, or ~/.cache.
ENVIRONMENT = "PACKEDBAG_CACHE"
TIMEOUT_SECONDS = 300
ADVICE = (
    f"Check the network and pip's settings, or fetch it yourself: pip download --no-deps {REQUIREMENT}, "
    f"and pass --data {FILE}."
)


def cache_folder() -> Path:
    """Return the folder for downloads: $PACKEDBAG_CACHE, else packedbag below $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packedbag"


def fetch(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Path:
    """Return the path of the wheel in the cache; pip downloads it where it is missing or damaged.

    pip is used so that the user's own index, proxy and certificates apply.

    Args:
        run: starts a process, as `subprocess.run` does.

    Raises:
        DataError: pip is missing, fails, or brings something else than the pinned file.
    """
    target = cache_folder() / FILE
    if target.is_file() and problem(target) is None:
        return target
    # Not importlib.util: setuptools' hook answers that with a warning where distutils has been imported already.
    if PathFinder.find_spec("pip") is None:
        raise DataError(target, None, "is not there, and this Python has no pip to download it with", ADVICE)
    with tempfile.TemporaryDirectory(prefix="packedbag-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", folder, REQUIREMENT]
        try:
            done = run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(target, None, f"pip did not download it in {TIMEOUT_SECONDS} s", ADVICE) from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
            raise DataError(target, None, f"pip could not download it ({errors[0]})", ADVICE)
        wheel = Path(folder) / FILE
        found = "pip brought no such file" if not wheel.is_file() else problem(wheel)
        if found:
            raise DataError(target, None, f"pip downloaded {REQUIREMENT}, but {found}", ADVICE)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open("rb") as source, replacing(target) as file:
                shutil.copyfileobj(source, file)
        except OSError as error:
            raise DataError(
                target, None, f"cannot be written: {error.strerror}", f"Set {ENVIRONMENT} to another folder."
            ) from None
    return target


def problem(wheel: Path) -> str | None:
    """Return why ``wheel`` is not the pinned file, or None when it is."""
    size = wheel.stat().st_size
    if size != SIZE:
        return f"the file has {size:,} bytes; the pinned one has {SIZE:,}"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return None if digest == SHA256 else f"the file's sha256 is {digest}; the pinned one's is {SHA256}"
