"""Kinds of tables side by side: the bytes of each, computed and measured."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packedbag import __version__
from packedbag.report.kinds.kind import Costs, Kind, Load, Shape
from packedbag.report.memory import human
from packedbag.report.step_memory import Bags, Cost, MeasurementError, measure

#: What is compared, and what to call it in a heading.
PARTS = {
    "table": "table",
    "gradient": "gradient",
    "state": "optimizer state",
    "peak": "peak in a step",
    "checkpoint": "checkpoint",
}
EXPLAINED = {
    "table": "the weights, with what is needed to read them: what serving takes",
    "gradient": "what backward leaves for the optimizer",
    "state": "what the optimizer keeps from step to step",
    "peak": "the most that a training step holds at once, the three above included",
    "checkpoint": "a file to resume from: table and optimizer state",
}
#: A measurement that is further from the formula than this part of it, and than this many bytes, is marked. Resident
#: memory comes in pages, and threads and libraries take some when they like.
TOLERANCE = 0.1
NOISE = 1_000_000
#: A step of a table of 10^9 rows takes minutes.
TIMEOUT_SECONDS = 3600.0


@dataclass
class Line:
    """One kind of table.

    Args:
        kind: says what it is.
        computed: by formula, of all tables together.
        tables: by formula, of each table alone.
        measured: in a child process; None where it was not.
        why_not: why it was not measured.
    """

    kind: Kind
    computed: Costs
    tables: list[Costs]
    measured: Costs | None = None
    why_not: str | None = None

    @property
    def best(self) -> Costs:
        """What was measured, or else what was computed."""
        return self.measured or self.computed

    def differs(self, part: str) -> bool:
        """Say whether what was measured is not what was computed."""
        if self.measured is None:
            return False
        computed, measured = (getattr(costs, part) for costs in (self.computed, self.measured))
        return bool(abs(measured - computed) > max(TOLERANCE * computed, NOISE))


@dataclass
class Report:
    """All kinds, and what they are compared on."""

    shapes: list[Shape]
    load: Load
    device: str
    lines: list[Line]
    bytes_in_file: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is compared, as a heading."""
        if len(self.shapes) == 1:
            what = f"{self.shapes[0].rows:,} rows x {self.shapes[0].dim:,} weights"
        else:
            rows, weights = (sum(getattr(s, name) for s in self.shapes) for name in ("rows", "weights"))
            what = f"{len(self.shapes)} tables, {rows:,} rows, {weights:,} weights"
        where = "a GPU" if self.device == "cuda" else "the CPU"
        return f"{what}; a batch of {self.load.bags:,} bags of {self.load.length:,} ids, on {where}"

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; what was not measured is null."""
        return {
            "packedbag": __version__,
            "machine": machine(self.device) if any(line.measured for line in self.lines) else None,
            "device": self.device,
            "batch": {"bags": self.load.bags, "length": self.load.length},
            "tables": [
                {"name": s.name, "rows": s.rows, "dim": s.dim, "bytes_in_file": self.bytes_in_file.get(s.name)}
                for s in self.shapes
            ],
            "kinds": [
                {
                    "kind": line.kind.key,
                    "title": line.kind.title,
                    "optimizer": line.kind.optimizer,
                    "bits": line.kind.bits,
                    "computed": line.computed.plain(),
                    "measured": None if line.measured is None else line.measured.plain(),
                    "not_measured": line.why_not,
                    "differs": [part for part in PARTS if line.differs(part)],
                    "tables": [costs.plain() for costs in line.tables],
                }
                for line in self.lines
            ],
        }


def compute(
    kinds: Sequence[Kind],
    shapes: Sequence[Shape],
    load: Load,
    *,
    device: str = "cpu",
    bytes_in_file: dict[str, int] | None = None,
) -> Report:
    """Compute what the tables cost in each kind; measure nothing.

    Args:
        kinds: to compare.
        shapes: of the tables, which train together.
        load: the batch of each.
        device: "cpu" or "cuda", for `measure_line`.
        bytes_in_file: of tables that were read from a file, by name.

    >>> from packedbag.report.kinds.registry import make_kind
    >>> report = compute([make_kind("fp32"), make_kind("packed")], [Shape(1000, 64)], Load(32, 20))
    >>> [line.computed.table for line in report.lines]
    [256000, 8000]
    """
    lines = [Line(k, k.costs(shapes, load), [k.costs([shape], load) for shape in shapes]) for k in kinds]
    return Report(list(shapes), load, device, lines, bytes_in_file or {})


def measure_line(
    report: Report, line: Line, *, limit: int, options: dict[str, Any], stage: Callable[[str], None]
) -> None:
    """Build the tables of a line in a child process, take two steps, and note what that took, or why it was not done.

    Args:
        report: that the line is of.
        line: to fill in.
        limit: bytes that a step may take.
        options: ``bits`` and ``optimizer``, that the line's kind was made with.
        stage: called when the child begins something; see `packedbag.report.step_memory.STAGES`.
    """
    need = line.computed.peak
    if need > limit:
        line.why_not = f"needs {human(need)}, and {human(limit)} may be used"
        return
    batch = [Bags.of(shape, report.load, seed) for seed, shape in enumerate(report.shapes)]
    dims = [shape.dim for shape in report.shapes]
    try:
        cost = measure(
            line.kind.key,
            batch,
            dims,
            device=report.device,
            limit=limit,
            stage=stage,
            timeout=TIMEOUT_SECONDS,
            **options,
        )
    except MeasurementError as error:
        line.why_not = error.reason
    else:
        line.measured = _costs(cost)


def _costs(cost: Cost) -> Costs:
    return Costs(*(getattr(cost, f"{part}_bytes") for part in PARTS))


def machine(device: str) -> dict[str, Any]:
    """Return what the measurements ran on."""
    import os

    import torch

    info = Path("/proc/cpuinfo")
    lines: Iterator[str] = iter(info.read_text().splitlines() if info.exists() else ())
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": names[0] if names else platform.processor(), "cores": cores, "torch": torch.__version__}
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found
