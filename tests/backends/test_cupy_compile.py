"""Kernels are compiled once, keep subnormal numbers, and are kept on disk."""

from __future__ import annotations

import struct
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from packedbag.backends import cuda_kernels, cupy_compile
from packedbag.backends.cupy_compile import ENVIRONMENT, compiled, target, whole
from tests.devices import hosted

pytestmark = pytest.mark.skipif(hosted(), reason="devices in the host's memory compile with the emulator")


class FakeCompiler:
    """Stands for cupy.cuda.nvrtc; notes what it is asked to compile."""

    NVRTCError = RuntimeError

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.calls: list[tuple[str, ...]] = []
        self.open = 0

    def getVersion(self) -> tuple[int, int]:
        return 13, 0

    def getSupportedArchs(self) -> tuple[int, ...]:
        return 75, 90

    def createProgram(self, source: str, name: str, headers: Any, includes: Any) -> int:
        self.open += 1
        return 1

    def destroyProgram(self, program: int) -> None:
        self.open -= 1

    def addNameExpression(self, program: int, expression: str) -> None:
        self.expression = expression

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        if self.fails:
            raise RuntimeError
        self.calls.append(options)

    def getProgramLog(self, program: int) -> str:
        return "line 3: no"

    def getLoweredName(self, program: int, expression: str) -> str:
        return "_Z5judgePKf"

    def getCUBIN(self, program: int) -> bytes:
        return b"machine code"

    def getPTX(self, program: int) -> bytes:
        return b"text"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_kernel_is_compiled_once(cache: Path) -> None:
    nvrtc = FakeCompiler()
    first, again = (compiled("judge", "judge", (9, 0), nvrtc) for _ in range(2))
    assert first == again
    assert first[0].read_bytes() == b"machine code"
    assert first[1] == "_Z5judgePKf"
    assert nvrtc.calls == [(*cuda_kernels.OPTIONS, "-arch=sm_90")]
    assert nvrtc.open == 0
    assert len(list(cache.iterdir())) == 1


def test_nothing_is_compiled_beside_the_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC tells a thread that compiles meanwhile that its library of built-ins is missing."""
    monkeypatch.setattr(cupy_compile, "_compiled_before", threading.Event())
    opening = threading.Event()

    class Opens(FakeCompiler):
        def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
            assert not opening.is_set()
            if not self.calls:
                opening.set()
                time.sleep(0.2)
                opening.clear()
            super().compileProgram(program, options)

    nvrtc = Opens()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda instance: compiled(*instance, (9, 0), nvrtc), list(cuda_kernels.every_instance())[:4]))
    assert len(nvrtc.calls) == len(list(cache.iterdir())) == 4


def test_another_gpu_is_another_file(cache: Path) -> None:
    nvrtc = FakeCompiler()
    old, new = compiled("judge", "judge", (7, 5), nvrtc), compiled("judge", "judge", (12, 0), nvrtc)
    assert old[0] != new[0]
    assert new[0].suffix == ".ptx"  # newer than the compiler: the driver makes the machine code
    assert [call[-1] for call in nvrtc.calls] == ["-arch=sm_75", "-arch=compute_90"]


def test_a_source_that_does_not_compile_shows_the_log_and_leaves_nothing(cache: Path) -> None:
    nvrtc = FakeCompiler(fails=True)
    with pytest.raises(RuntimeError, match="judge: line 3: no"):
        compiled("judge", "judge", (9, 0), nvrtc)
    assert nvrtc.open == 0
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_replaced_for_the_process(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    first, again = (compiled("judge", "judge", (9, 0), FakeCompiler()) for _ in range(2))
    assert first[0].read_bytes() == b"machine code"
    assert first == again


def cupys_compiler() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy").cuda.nvrtc


@pytest.mark.parametrize("missing", [0, 1, 60])
def test_machine_code_ends_where_its_header_says(missing: int) -> None:
    header = b"\x7fELF".ljust(32, b"\1") + struct.pack("<2QIH4H", 300, 100, 0, 64, 56, 2, 64, 3)
    file = header.ljust(350, b"\2").ljust(412, b"\0")
    assert whole(file[: len(file) - missing]) == file


@pytest.mark.parametrize("name", list(cuda_kernels.KERNELS))
def test_cupys_compiler_leaves_whole_files(name: str) -> None:
    nvrtc = cupys_compiler()
    newest = max(nvrtc.getSupportedArchs())
    expression = next(expression for kernel, expression in cuda_kernels.every_instance() if kernel == name)
    code = compiled(name, expression, (newest // 10, newest % 10), nvrtc)[0].read_bytes()
    program_headers, section_headers = struct.unpack_from("<2Q", code, 32)
    size, number, section_size, sections = struct.unpack_from("<4H", code, 54)
    assert max(program_headers + size * number, section_headers + section_size * sections) == len(code)


def test_cupys_compiler_keeps_subnormal_numbers() -> None:
    nvrtc = cupys_compiler()
    supported = nvrtc.getSupportedArchs()
    newest = max(supported)
    path, symbol = compiled("judge", "judge", (newest // 10, newest % 10), nvrtc)
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert "judge" in symbol
    option, is_machine_code = target((99, 0), supported)
    assert not is_machine_code
    text = compiled("row_update", "row_update<int, 4>", (99, 0), nvrtc)[0].read_text()
    assert option.removeprefix("-arch=compute_") in text
    assert "mul.rn.f32" in text or "mul.f32" in text
    assert ".ftz" not in text
