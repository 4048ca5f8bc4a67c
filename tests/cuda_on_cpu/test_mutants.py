"""The mutation runner tells a caught mutant from one that was missed, is absent, or broke the tests themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_on_cpu import emulator, mutants
from tests.cuda_on_cpu.mutants import Mutant

pytestmark = [
    pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing())),
    pytest.mark.skipif(emulator.sanitizer() in ("asan", "tsan"), reason="a report of the sanitizer fails no test"),
]

SOURCE = """\
__global__ void add(const int *from, int *to, int n) {
  const int i = threadIdx.x;
  if (i < n) to[i] = from[i] + 1;  // of every element
}
"""
TEST = """\
import os
from pathlib import Path

import numpy as np

from tests.cuda_on_cpu.emulator import Module


def test_add():
    code = (Path(os.environ["PACKEDBAG_CUDA_SOURCES"]) / "add.cu").read_text()
    to = np.zeros(4, np.int32)
    add = Module(code, name_expressions=["add"], filename="add.cu").get_function("add")
    add((1,), (8,), (np.arange(4, dtype=np.int32), to, np.int32(4)))
    assert to.tolist() == [1, 2, 3, 4]
"""


def changed(old: str, new: str, tmp_path: Path) -> mutants.Outcome:
    sources = tmp_path / "cuda"
    sources.mkdir()
    (sources / "add.cu").write_text(SOURCE)
    test = tmp_path / "test_add.py"
    test.write_text(TEST)
    found = mutants.run(Mutant("add.cu", old, new, (str(test), f"--rootdir={tmp_path}")), sources)
    assert (sources / "add.cu").read_text() == SOURCE
    return found


@pytest.mark.parametrize(
    ("old", "new", "verdict", "why"),
    [
        ("from[i] + 1", "from[i] + 2", "CAUGHT", "assert"),
        ("i < n", "i <= n", "CAUGHT", "access outside argument"),
        ("of every element", "of each element", "MISSED", "1 passed"),
        ("no such place", "x", "ABSENT", "0 times"),
        ("from", "form", "ABSENT", "2 times"),
        ("+ 1;", "+ 1", "BROKEN", "error"),
    ],
)
def test_a_mutant_gets_its_verdict(old: str, new: str, verdict: str, why: str, tmp_path: Path) -> None:
    found = changed(old, new, tmp_path)
    assert (found.verdict, why in found.why) == (verdict, True), found


def test_a_test_that_cannot_be_collected_catches_nothing() -> None:
    mutant = Mutant("add.cu", "a", "b", ())
    assert mutants.outcome(mutant, 2, "E   ImportError: x\n1 error in 0.1s").verdict == "BROKEN"
    assert mutants.outcome(mutant, 5, "no tests ran in 0.1s").verdict == "BROKEN"
    assert mutants.outcome(mutant, 0, "3 skipped in 0.1s").verdict == "BROKEN"
    assert mutants.outcome(mutant, 1, "1 error in 0.1s").verdict == "BROKEN"


def test_a_missed_mutant_makes_the_run_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [Mutant("add.cu", "a", "b", ("x",)), Mutant("sum.cu", "c", "d", ("y",))]
    monkeypatch.setattr(mutants, "MUTANTS", two)

    def run(mutant: Mutant, sources: Path) -> mutants.Outcome:
        return mutants.Outcome(mutant, "CAUGHT" if mutant.file == "add.cu" else "MISSED", "why")

    monkeypatch.setattr(mutants, "run", run)
    assert mutants.main([]) == 1
    assert "1 of 2 mutants caught" in capsys.readouterr().out
    assert mutants.main(["-k", "add"]) == 0
    assert mutants.main(["-k", "nothing"]) == 1
