"""The device and the software that numbers belong to."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import torch

import packedbag
from benchmarks.machine import version
from benchmarks.memory import processor
from packedbag import backends

#: What nvidia-smi is asked: driver, clocks and power limit as they were found; nothing is changed.
ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu", "utilization.gpu")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def from_driver(card: Any) -> dict[str, str]:
    """Return what nvidia-smi says of the card of these properties, {} where it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [
        program,
        f"--id=GPU-{getattr(card, 'uuid', '')}",
        f"--query-gpu={','.join(ASKED)}",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(ASKED, values, strict=True)) if done.returncode == 0 and len(values) == len(ASKED) else {}


def facts(device: torch.device) -> dict[str, Any]:
    """Return what a reader must know to compare."""
    found: dict[str, Any] = {
        "device": device.type,
        "processor": processor(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cupy": next((seen for name in CUPY if (seen := version(name))), None),
        "fbgemm-gpu": version("fbgemm-gpu"),
        "packedbag": packedbag.__version__,
        "backend": backends.select(device.type).name,
    }
    if device.type != "cuda":
        return {**found, "name": found["processor"]}
    card = torch.cuda.get_device_properties(device)
    return {
        **found,
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "cache_bytes": getattr(card, "L2_cache_size", 0),
        "multiprocessors": card.multi_processor_count,
        "cuda": torch.version.cuda,
        **from_driver(card),
    }


def slug(name: str) -> str:
    """Return a card's name as it stands in a file's name: ``NVIDIA H200`` is ``nvidia_h200``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
