"""Builds are made once, are shared by processes, and do without what the compiler lacks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda_on_cpu import emulator, toolchain


def test_of_two_that_want_a_build_one_waits_for_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACKEDBAG_EMULATOR_CACHE", str(tmp_path / "cache"))
    calls = []

    def build(made: Path) -> None:
        calls.append(made)
        time.sleep(0.1)
        made.write_text("built")

    with ThreadPoolExecutor(2) as pool:  # the lock belongs to an open file, so threads stand for processes
        paths = list(pool.map(lambda _: toolchain.built("key", ".txt", build), range(2)))
    assert len(calls) == 1
    assert paths[0] == paths[1]
    assert paths[0].read_text() == "built"
    assert not calls[0].parent.exists()


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACKEDBAG_EMULATOR_CACHE", str(tmp_path))

    def fail(made: Path) -> None:
        made.write_text("half")
        raise toolchain.BuildError("no")

    with pytest.raises(toolchain.BuildError):
        toolchain.built("key", ".txt", fail)
    assert toolchain.built("key", ".txt", lambda made: made.touch()).read_text() == ""


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
def test_where_the_compiler_has_no_ubsan_kernels_are_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.sanitizer_flags.cache_clear()
    monkeypatch.setitem(toolchain.SANITIZERS, "ubsan", ("-fsanitize=no-such-thing",))
    assert toolchain.sanitizer_flags("ubsan") == ()
    monkeypatch.undo()
    toolchain.sanitizer_flags.cache_clear()
    assert toolchain.sanitizer_flags("ubsan") == toolchain.UNDEFINED


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "CXX", "no-such-compiler")
    assert emulator.missing() == "no C++ compiler: no-such-compiler is not on PATH"


def test_the_environment_chooses_the_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKEDBAG_EMULATOR_SANITIZE", "none")
    assert emulator.sanitizer() == "none"
    assert emulator.sanitizer("tsan") == "tsan"
    monkeypatch.setenv("PACKEDBAG_EMULATOR_SANITIZE", "all")
    with pytest.raises(emulator.EmulatorError, match="sanitizer 'all'; there are none, ubsan, asan, tsan"):
        emulator.sanitizer()
    monkeypatch.delenv("PACKEDBAG_EMULATOR_SANITIZE")
    assert emulator.sanitizer() == "ubsan"
