"""What this machine runs, what is missing, and what to install: the facts behind ``packedbag doctor``.

Needs no extra: where typer is not installed, ``python -m packedbag.cli.diagnosis`` prints the same.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from packedbag import __version__
from packedbag.backends.registry import ENVIRONMENT, REGISTRY, available, missing, select
from packedbag.core.errors import PackedBagError

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES_MEAN = {
    "always": "every large table may use them",
    "madvise": "large tables ask for them",
    "never": "off; large tables are read about half as fast",
}


#: A line of the metadata: ``library[of, these]>=1; extra == "name"``.
_REQUIREMENT = re.compile(
    r"(?P<library>[\w.-]+)(?:\[(?P<of>[\w,-]+)\])?[^;]*;.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]"
)


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, dict[str, Any]]:
    """Return for each extra of packedbag its libraries with their versions (None: missing) and how to install it.

    Read from the installed metadata, so that it cannot differ from pyproject.toml. Empty where packedbag runs from
    a source tree that was never installed.
    """
    try:
        required = importlib.metadata.requires("packedbag") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    libraries: dict[str, set[str]] = {}
    included: dict[str, set[str]] = {}
    for requirement in required:
        parsed = _REQUIREMENT.match(requirement)
        if parsed is None:
            continue
        named = libraries.setdefault(parsed["extra"], set())
        if parsed["library"] == "packedbag":
            included[parsed["extra"]] = set((parsed["of"] or "").split(","))
        else:
            named.add(parsed["library"])
    for _ in included:  # an extra may include one that includes another
        for extra, others in included.items():
            libraries[extra] = libraries[extra].union(*(libraries.get(other, set()) for other in others))
    return {
        extra: {
            "libraries": {library: installed(library) for library in sorted(names)},
            "install": f"pip install 'packedbag[{extra}]'",
        }
        for extra, names in libraries.items()
    }


def huge_pages() -> str | None:
    """Return the kernel's setting for transparent huge pages ("always", "madvise", "never"), None if unknown."""
    try:
        chosen = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text())
    except OSError:
        return None
    return chosen[1] if chosen else None


def gpus() -> list[str]:
    """Return the names of the GPUs that torch can use."""
    if not installed("torch"):
        return []
    cuda = importlib.import_module("torch").cuda
    return [str(cuda.get_device_name(i)) for i in range(cuda.device_count())] if cuda.is_available() else []


def cupy() -> str | None:
    """Return the version of CuPy, which is another distribution for each CUDA, or None."""
    return next((v for v in map(installed, ("cupy-cuda13x", "cupy-cuda12x", "cupy")) if v), None)


def chosen_for_cuda(found: list[str]) -> str | None:
    """Return the name of the backend in use on a GPU, or None where there is none."""
    return select("cuda").name if found and not os.environ.get(ENVIRONMENT) else None


def kernels() -> dict[str, Any]:
    """Return the instruction sets the native backend can use here, best first, the one in use, and its threads."""
    found: dict[str, Any] = {"usable": [], "in_use": None, "forced": os.environ.get("PACKEDBAG_ISA"), "threads": None}
    if missing("native_cpu") is None:
        native = importlib.import_module("packedbag.backends.native_cpu")
        found.update(usable=list(native.isas()), in_use=native.BACKEND.isa, threads=native.threads())
    return found


def chosen_backend() -> tuple[str | None, str | None]:
    """Return the name of the backend in use on a CPU and None, or None and why there is none."""
    try:
        return select("cpu").name, None
    except PackedBagError as error:
        return None, str(error)


def diagnose() -> dict[str, Any]:
    """Collect every fact, ready for JSON.

    Returns:
        ``versions``, ``machine``, ``gpus``, ``cuda_backend`` in use on them, ``backends`` (name -> None if it runs,
        else why not), ``available`` on a CPU, best first, ``backend`` in use there, ``forced_backend``, ``problem``
        (None, or why none can be used), ``kernels``, ``threads``, ``huge_pages``, ``extras``.
    """
    backend, problem = chosen_backend()
    found = gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads: dict[str, Any] = {
        "cores": cores,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "torch": None,
        "native_cpu": None,
    }
    if installed("torch"):
        threads["torch"] = importlib.import_module("torch").get_num_threads()
    native = kernels()
    threads["native_cpu"] = native.pop("threads")
    return {
        "versions": {
            "packedbag": __version__,
            "python": platform.python_version(),
            "numpy": installed("numpy"),
            "torch": installed("torch"),
            "cupy": cupy(),
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "backends": {name: missing(name) for name in REGISTRY},
        "available": list(available("cpu")),
        "gpus": found,
        "cuda_backend": chosen_for_cuda(found),
        "backend": backend,
        "forced_backend": os.environ.get(ENVIRONMENT),
        "problem": problem,
        "kernels": native,
        "threads": threads,
        "huge_pages": huge_pages(),
        "extras": extras(),
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the facts of `diagnose` as text, one subject a line."""
    lines = [f"{name:<12} {version or 'not installed'}" for name, version in facts["versions"].items()]
    gpus = ", ".join(facts["gpus"]) or "none that torch can use"
    lines += [f"{'machine':<12} {facts['machine']}", f"{'gpu':<12} {gpus}"]
    lines += ["", "backends"]
    for name, reason in facts["backends"].items():
        used = "".join(
            f" ({where})"
            for where, chosen in (("in use", facts["backend"]), ("in use on the GPU", facts["cuda_backend"]))
            if chosen == name
        )
        state = f"missing: {reason}" if reason else f"runs{used}"
        lines.append(f"  {name:<12} {state}")
    if facts["forced_backend"]:
        lines.append(f"  forced by {ENVIRONMENT}={facts['forced_backend']}")
    if facts["problem"]:
        lines.append(f"  problem: {facts['problem']}")
    lines.append("")
    kernels = facts["kernels"]
    if kernels["usable"]:
        forced = f" (PACKEDBAG_ISA={kernels['forced']} forces it)" if kernels["forced"] else ""
        lines.append(f"{'kernels':<12} {kernels['in_use']}{forced}, of {', '.join(kernels['usable'])}")
    threads = facts["threads"]
    used = ", ".join(f"{who} uses {threads[who]}" for who in ("torch", "native_cpu") if threads[who])
    omp = threads["OMP_NUM_THREADS"] or "not set"
    lines.append(f"{'threads':<12} {threads['cores']} cores; {f'{used}; ' if used else ''}OMP_NUM_THREADS is {omp}")
    pages = facts["huge_pages"]
    lines.append(f"{'huge pages':<12} {f'{pages}: {HUGE_PAGES_MEAN.get(pages, pages)}' if pages else 'unknown'}")
    lines += ["", "extras"]
    for extra, entry in facts["extras"].items():
        absent = [name for name, version in entry["libraries"].items() if version is None]
        state = f"missing {', '.join(absent)}; {entry['install']}" if absent else "installed"
        lines.append(f"  {extra:<12} {state}")
    if not facts["extras"]:
        lines.append("  unknown: packedbag is not installed here; run: pip install -e '.[dev]'")
    return "\n".join(lines)


def main() -> int:
    """Print the description; 1 where no backend can be used."""
    facts = diagnose()
    print(describe(facts))
    return 1 if facts["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
