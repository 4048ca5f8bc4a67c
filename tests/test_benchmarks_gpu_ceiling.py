"""The ceiling of the GPU benchmark: its kernel gathers and XORs, whichever way it is launched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import forward
from benchmarks.gpu.peers import ceiling
from benchmarks.gpu.peers.ceiling import BLOCKS, SHARED, SOURCE, WARP, Plan, plans
from benchmarks.shapes import Shape
from benchmarks.table import Table
from tests.cuda_on_cpu import emulator

WIDTHS = (1, 2, 3, 4, 6, 8, 12)
ARGUMENTS = "const unsigned*, const int*, unsigned*, unsigned, unsigned, unsigned"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [1, 20, 33])
def test_plans_are_what_the_kernel_asks_for(width: int, length: int) -> None:
    tried = plans(length, width)
    assert {plan.block for plan in tried} == set(BLOCKS)
    for plan in tried:
        team = plan.team(width)
        assert width % plan.vector == 0
        assert plan.split == 1 or (team <= WARP and WARP % team == 0)
        assert not plan.staged or (plan.block % team == 0 and plan.shared(length, width) <= SHARED)
        assert plan.grid(65_536, width) * plan.block >= 65_536 * team
    assert any(plan.staged for plan in tried) == any(128 % plan.team(width) == 0 for plan in tried)


def test_a_row_of_16_bytes_is_read_with_one_load() -> None:
    assert max(plan.vector for plan in plans(20, 4)) == 4
    assert len(plans(20, 4)) == 108


def test_a_block_has_no_more_shared_memory_than_it_may() -> None:
    assert not any(plan.staged and plan.block == 512 and plan.team(1) == 1 for plan in plans(100, 1))


def drawn(width: int, bags: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(width)
    words = generator.integers(0, 2**32, (50, width), np.uint32)
    indices = generator.integers(0, len(words), (bags, length), np.int32)
    return words, indices, np.bitwise_xor.reduce(words[indices], axis=1)


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
@pytest.mark.parametrize("width", WIDTHS)
def test_every_plan_gathers_and_joins_what_numpy_does(width: int) -> None:
    few = [plan for plan in plans(33, width) if plan.block == 128]
    module = emulator.Module(SOURCE.read_text(), name_expressions=sorted({plan.kernel for plan in few}))
    for length in (1, 4, 20, 33):
        bags = 37
        words, indices, wanted = drawn(width, bags, length)
        for plan in few:
            out = np.full((bags, width), 0xA5A5A5A5, np.uint32)
            sizes = np.uint32(bags), np.uint32(length), np.uint32(width)
            module.get_function(plan.kernel)(
                (plan.grid(bags, width),),
                (plan.block,),
                (words, indices, out, *sizes),
                shared_mem=plan.shared(length, width),
            )
            np.testing.assert_array_equal(out, wanted, err_msg=f"{plan}, length {length}")


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
@pytest.mark.parametrize("spoiled", [False, True])
def test_the_ceiling_is_the_fastest_of_plans_that_are_right(monkeypatch: pytest.MonkeyPatch, spoiled: bool) -> None:
    code = SOURCE.read_text()
    if spoiled:
        code = code.replace("a.z ^= b.z", "a.z |= b.z")
        assert code != SOURCE.read_text()

    def functions(names: tuple[str, ...]) -> dict[str, Any]:
        module = emulator.Module(code, name_expressions=names)
        return {name: module.get_function(name) for name in names}

    few = [Plan(4, split, 5, staged, 128) for split in (1, 2) for staged in (False, True)]
    monkeypatch.setattr(ceiling, "_functions", functions)
    monkeypatch.setattr(ceiling, "_stream", lambda: None)
    monkeypatch.setattr(ceiling, "_address", emulator.remember)
    monkeypatch.setattr(ceiling, "plans", lambda length, width: few)
    (contender,) = ceiling.CONTENDERS
    table = Table(Shape(rows=300, dim=128, bags=12, length=20))
    inputs = forward.batches(table.shape, 2, torch.device("cpu"), torch.int32)
    ready, failed = forward.prepared([contender], table, inputs, lambda text: None)
    if spoiled:
        assert failed[contender.name].startswith("WrongValuesError: gather ceiling, Plan(vector=4, split=1")
    else:
        assert [turn.name for turn in ready] == [contender.name]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
def test_the_kernel_compiles_without_spills(tmp_path: Path) -> None:
    kernels = sorted({plan.kernel for width in (1, 2, 4) for plan in plans(20, width)})
    source = tmp_path / "gather.cu"
    instances = (f"template __global__ void {kernel}({ARGUMENTS});" for kernel in kernels)
    source.write_text("\n".join((SOURCE.read_text(), *instances)))
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "gather.cubin")]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" 0 bytes spill stores") == len(kernels)


def test_a_plan_names_its_instance() -> None:
    assert Plan(4, 2, 10, True, 128).kernel == "gather<4, 2, 10, true>"
