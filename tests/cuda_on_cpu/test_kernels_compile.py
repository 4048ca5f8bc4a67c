"""Every CUDA kernel compiles for every architecture, and none keeps registers in memory."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from packedbag.backends import cuda_kernels
from tests.cuda_on_cpu import offline

FILES: dict[str, list[tuple[str, str]]] = defaultdict(list)
for _name, _expression in cuda_kernels.every_instance():
    FILES[cuda_kernels.KERNELS[_name].file].append((_name, _expression))


def parts(file: str) -> list[Any]:
    """Return the expressions of a file in portions that compile in a few seconds, so that processes share the work."""
    size, expressions = 14, FILES[file]
    return [
        pytest.param(expressions[0][0], [e for _, e in expressions[at : at + size]], id=f"{file}-{at // size}")
        for at in range(0, len(expressions), size)
    ]


@pytest.mark.parametrize(("name", "expressions"), [part for file in FILES for part in parts(file)])
@pytest.mark.parametrize("arch", offline.ARCHITECTURES)
def test_every_kernel_compiles_without_spills(arch: int, name: str, expressions: list[str]) -> None:
    reason = offline.missing(arch)
    if reason:
        pytest.skip(reason)
    kernel = cuda_kernels.KERNELS[name]
    reports = offline.compile_source(cuda_kernels.source(name), expressions, arch, filename=kernel.file)
    assert [report.name for report in reports] == expressions
    assert {report.name: report.spill_stores for report in reports if report.spills} == {}
    # Blocks of 128 threads must fit an SM's 65,536 registers three times at least, or too few loads are under way.
    assert max(report.registers for report in reports) <= 168


def test_no_source_includes_anything() -> None:
    for path in cuda_kernels.folder().iterdir():
        if path.suffix in (".cu", ".cuh"):
            assert "#include" not in path.read_text(), path.name


def test_every_source_belongs_to_a_kernel_of_the_list() -> None:
    used = {kernel.file for kernel in cuda_kernels.KERNELS.values()}
    used |= {f"{part}.cuh" for kernel in cuda_kernels.KERNELS.values() for part in kernel.parts}
    assert used == {path.name for path in cuda_kernels.folder().iterdir() if path.suffix in (".cu", ".cuh")}


def test_the_compiler_is_given_the_packages_options() -> None:
    assert set(offline.OPTIONS) == {"-" * (option.startswith("-std")) + option for option in cuda_kernels.OPTIONS}
