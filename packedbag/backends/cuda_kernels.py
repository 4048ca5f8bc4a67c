"""The one list of CUDA kernels: which source holds each, and every template instance that can be launched.

CuPy compiles from it at run time, the tests compile all of it for every architecture and run it on a CPU. A name
expression, such as ``bag<int, 8, 1, 4>``, says which instance is meant; the numbers are those of the ``enum`` in
``cuda/``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

#: Reads the sources from another folder, for tests that change them.
ENVIRONMENT = "PACKEDBAG_CUDA_SOURCES"
#: What every compiler is given: C++17; products rounded before they are added, and subnormal numbers kept, as on every
#: other backend.
OPTIONS = ("-std=c++17", "--fmad=false", "-ftz=false")

INTEGERS = {"int32": "int", "int64": "i64"}
OUTPUTS = {"float32": 0, "float16": 1, "bfloat16": 2, "int32": 3, "uint32": 4}
BOUNDS = {"raise": 0, "clamp": 1, "skip": 2, "unchecked": 3}
ADAPTIVITY = {None: 0, "ema": 1, "adagrad": 2}
#: How bag.cu counts for each mode.
FAMILIES = {"sum": 0, "mean": 0, "majority": 1, "max": 2}
#: What the bit-planes of a counter hold: bags of up to so many entries.
PLANES = {4: 15, 8: 255, 32: 2**31 - 1}
#: Words of a row whose summed gradient a warp keeps in registers.
TILES = (1, 2, 4, 8)
#: The element types that pack.cu takes, by size: bool, float16 and bfloat16, float32.
PACKABLE = {1: "u8", 2: "u16", 4: "u32"}

_FLOATS = (OUTPUTS["float32"], OUTPUTS["float16"], OUTPUTS["bfloat16"])


@dataclass(frozen=True)
class Kernel:
    """A kernel: a row of the list.

    Attributes:
        file: its source in ``cuda/``.
        parts: the sources that go before it, in order.
        instances: the values of each template parameter; () for a kernel that is no template.
    """

    file: str
    parts: tuple[str, ...]
    instances: tuple[tuple[str | int, ...], ...] = ()


_I = tuple(INTEGERS.values())
_BAG = (
    *product(_I, PLANES, (FAMILIES["sum"],), (*_FLOATS, OUTPUTS["int32"])),
    *product(_I, PLANES, (FAMILIES["majority"],), (*_FLOATS, OUTPUTS["uint32"])),
    *product(_I, (4,), (FAMILIES["max"],), (*_FLOATS, OUTPUTS["uint32"])),  # counts nothing, so any planes do
)

KERNELS: dict[str, Kernel] = {
    "bag": Kernel("bag.cu", ("types", "rounding", "outputs", "entries", "planes"), _BAG),
    "weighted_bag": Kernel("weighted_bag.cu", ("types", "rounding", "outputs", "entries"), tuple(product(_I, _FLOATS))),
    "lookup": Kernel("lookup.cu", ("types", "rounding", "outputs", "entries"), tuple(product(_I, _FLOATS, (1, 4)))),
    "unpack": Kernel("lookup.cu", ("types", "rounding", "outputs", "entries")),
    "pack": Kernel("pack.cu", ("types",), tuple(product(PACKABLE.values()))),
    "bag_ends": Kernel("bag_ends.cu", ("types", "entries"), tuple(product(_I))),
    "mark": Kernel("mark.cu", ("types", "entries"), tuple(product(_I, _I))),
    "max_columns": Kernel("max_columns.cu", ("types",), tuple(product(_I))),
    "weight_gradient": Kernel("weight_gradient.cu", ("types", "lanes"), tuple(product(_I))),
    "run_sums": Kernel("run_sums.cu", ("types", "gradients"), tuple(product(_I))),
    "row_update": Kernel(
        "row_update.cu",
        ("types", "lanes", "philox", "gradients", "window", "control", "totals", "touches", "counters"),
        tuple(product(_I, TILES)),
    ),
    "judge": Kernel("judge.cu", ("types", "control", "totals")),
    "finish": Kernel("judge.cu", ("types", "control", "totals")),
    "hamming": Kernel("hamming.cu", ("types",)),
}


def expression(name: str, *arguments: str | int) -> str:
    """Return the name expression of an instance.

    >>> expression("bag", "int", 8, 1, 4)
    'bag<int, 8, 1, 4>'
    """
    return f"{name}<{', '.join(map(str, arguments))}>" if arguments else name


def every_instance() -> Iterator[tuple[str, str]]:
    """Yield (kernel, name expression) of all that can be launched."""
    for name, kernel in KERNELS.items():
        for arguments in kernel.instances or ((),):
            yield name, expression(name, *arguments)


def folder() -> Path:
    """Return the folder of the CUDA sources: beside the package in a source tree, inside it in a wheel."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    package = Path(__file__).parents[1]
    inside = package / "cuda"
    return inside if inside.is_dir() else package.parent / "cuda"


@functools.cache
def source(name: str) -> str:
    """Return the text to compile for kernel ``name``: its parts, then its file, each with its own line numbers."""
    kernel = KERNELS[name]
    files = [*(f"{part}.cuh" for part in kernel.parts), kernel.file]
    return "".join(f'#line 1 "{file}"\n{(folder() / file).read_text()}' for file in files)
