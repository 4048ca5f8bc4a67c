"""The ceiling of a GPU: a kernel that fetches the rows of each bag and XORs their words, and does nothing else."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.clock import clock_of
from benchmarks.gpu.contender import Call, Contender
from benchmarks.gpu.expected import Expected, WrongValuesError, poison
from benchmarks.shapes import index_sets
from benchmarks.table import Table
from packedbag.backends.cupy_launch import TorchStream

CEILING = "gather ceiling"
SOURCE = Path(__file__).parents[1] / "gather.cu"
OPTIONS = ("--std=c++17",)
WARP = 32
#: Words of a load; threads that share the entries of a bag; loads of a thread under way; threads of a block.
VECTORS, SPLITS, FLIGHTS, BLOCKS = (4, 2, 1), (1, 2, 4), (4, 5, 10), (128, 256, 512)
#: Of a row's widths, the two widest loads are tried: narrower ones ask for the same sectors more often.
WIDEST = 2
#: Bytes of shared memory that a block may have without asking.
SHARED = 48 << 10
SETS, TRIALS = 4, 3

Launch = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """One way to launch gather.cu."""

    vector: int
    split: int
    flight: int
    staged: bool
    block: int

    @property
    def kernel(self) -> str:
        """The instance of the template."""
        return f"gather<{self.vector}, {self.split}, {self.flight}, {'true' if self.staged else 'false'}>"

    def team(self, width: int) -> int:
        """Return the threads of one bag."""
        return width // self.vector * self.split

    def fits(self, length: int, width: int) -> bool:
        """Say whether it is right for bags of this length and rows of this width; see gather.cu."""
        team = self.team(width)
        in_a_warp = team <= WARP and team & (team - 1) == 0
        whole = self.block % team == 0 and self.shared(length, width) <= SHARED
        return width % self.vector == 0 and (self.split == 1 or in_a_warp) and (not self.staged or whole)

    def shared(self, length: int, width: int) -> int:
        """Return the bytes of shared memory of a block."""
        return self.block // self.team(width) * length * 4 if self.staged else 0

    def grid(self, bags: int, width: int) -> int:
        """Return the number of blocks."""
        return -(-bags * self.team(width) // self.block)


def plans(length: int, width: int) -> list[Plan]:
    """Return the ways to try."""
    vectors = [vector for vector in VECTORS if width % vector == 0][:WIDEST]
    every = itertools.product(vectors, SPLITS, FLIGHTS, (False, True), BLOCKS)
    return [plan for plan in itertools.starmap(Plan, every) if plan.fits(length, width)]


def missing(device: torch.device) -> str | None:
    """Return why the ceiling cannot be measured on ``device``, or None."""
    if device.type != "cuda":
        return "it is a CUDA kernel"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy, which compiles it, is not installed: pip install cupy-cuda12x, or cupy-cuda13x"
    return None


@functools.cache
def _functions(names: tuple[str, ...]) -> dict[str, Any]:
    """Compile gather.cu; return its instances by name."""
    import cupy

    module = cupy.RawModule(code=SOURCE.read_text(), options=OPTIONS, name_expressions=names)
    return {name: module.get_function(name).kernel for name in names}


def _stream() -> Any:
    """Return torch's current stream for a launch: a capture makes another one current."""
    return TorchStream(torch.cuda.current_stream().cuda_stream)


def _address(tensor: torch.Tensor) -> np.uint64:
    """Return where a tensor lies, as a kernel's argument."""
    return np.uint64(tensor.data_ptr())


def launcher(plan: Plan, function: Any, words: torch.Tensor) -> Launch:
    """Return the call that gathers bags (B, L) int32 of ``words`` with one plan, into memory of its own."""
    width, source = words.shape[1], _address(words)

    def call(indices: torch.Tensor) -> torch.Tensor:
        bags, length = indices.shape
        out = torch.empty((bags, width), dtype=torch.int32, device=words.device)
        pointers = source, _address(indices), _address(out)
        sizes = np.uint32(bags), np.uint32(length), np.uint32(width)
        function(
            (plan.grid(bags, width),),
            (plan.block,),
            (*pointers, *sizes),
            shared_mem=plan.shared(length, width),
            stream=_stream(),
        )
        return out

    return call


def fastest(calls: dict[Plan, Launch], sets: list[torch.Tensor], judge: Expected) -> Plan:
    """Return the plan whose captured pass over ``sets`` takes least, the best of a few; all must give the same."""
    clock = clock_of(sets[0].device)
    best: dict[Plan, float] = {}
    for plan, call in calls.items():
        result = call(sets[0])
        wrong = judge.differs("xor", result, 0.0)
        if wrong:
            raise WrongValuesError(f"{CEILING}, {plan}", judge.where, wrong)
        poison(result)  # the next plan's result takes this memory
        del result
        replay = clock.capture(functools.partial(_each, call, sets))
        replay()
        best[plan] = min(clock.seconds(replay) for _ in range(TRIALS))
    return min(best, key=best.__getitem__)


def _each(call: Launch, sets: list[torch.Tensor]) -> list[torch.Tensor]:
    return [call(indices) for indices in sets]


def _build(table: Table) -> Call:
    words, shape = table.words, table.shape
    tried = plans(shape.length, words.shape[1])
    functions = _functions(tuple(sorted({plan.kernel for plan in tried})))
    calls = {plan: launcher(plan, functions[plan.kernel], words) for plan in tried}
    sets = [torch.from_numpy(x).to(words.device, torch.int32) for x in index_sets(shape, SETS, seed=1)]
    judge = Expected(words, shape.dim, sets[0], shape.name)
    return Call(calls[fastest(calls, sets, judge)], read=lambda result: result)


CONTENDERS = (Contender(CEILING, "ceiling", "xor", "packed", _build, missing=missing),)
