"""Do the tests see a mistake in a kernel? Each mutant changes one place of a source, and its tests must then fail.

    python -m tests.cuda_on_cpu.mutants [-k part of a file, a text or a test]

Exits with 1 if a mutant passes its tests, or if its place is not in the source exactly once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_on_cpu.mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "cuda"
FAILED_TESTS = 1  # pytest's exit status; 2 and above: interrupted, a wrong call, nothing collected
AT_ONCE = 2


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: CAUGHT, MISSED, ABSENT (not exactly once in its source), or BROKEN (no test ran)."""

    mutant: Mutant
    verdict: str
    why: str

    def __str__(self) -> str:
        return f"{self.verdict:7} {str(self.mutant)[:100]:100} | {self.why}"


def run(mutant: Mutant, sources: Path = SOURCES) -> Outcome:
    """Run the tests of a mutant on a changed copy of the sources, without touching these."""
    text = (sources / mutant.file).read_text()
    count = text.count(mutant.old)
    if count != 1 or mutant.old == mutant.new:
        return Outcome(mutant, "ABSENT", f"{count} times in {mutant.file}" if count != 1 else "changes nothing")
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "cuda"
        shutil.copytree(sources, changed)
        (changed / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests],
            cwd=ROOT,
            env=os.environ | {"PACKEDBAG_CUDA_SOURCES": str(changed)},
            capture_output=True,
            text=True,
        )
    return outcome(mutant, done.returncode, done.stdout + done.stderr)


def outcome(mutant: Mutant, status: int, output: str) -> Outcome:
    """Read pytest's verdict; an error outside a test catches nothing, nor does a source that no longer compiles."""
    reasons = re.findall(r"^E\s+(\S.*)", output, re.MULTILINE)
    last = output.strip().splitlines()[-1] if output.strip() else ""
    failed = re.search(r"\b\d+ failed\b", last) is not None
    if status == 0 and re.search(r"\b\d+ passed\b", last):
        return Outcome(mutant, "MISSED", last)
    if status == FAILED_TESTS and failed and "does not compile" not in output:
        return Outcome(mutant, "CAUGHT", reasons[0] if reasons else last)
    return Outcome(mutant, "BROKEN", reasons[-1] if reasons else last)


def run_all(mutants: Sequence[Mutant], sources: Path = SOURCES) -> int:
    """Print a table of outcomes; return how many mutants were not caught."""
    uncaught = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for result in pool.map(lambda mutant: run(mutant, sources), mutants):
            print(result, flush=True)
            uncaught += result.verdict != "CAUGHT"
    print(f"{len(mutants) - uncaught} of {len(mutants)} mutants caught")
    return uncaught


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="PART", help="only mutants with this in their file, texts or tests")
    part = parser.parse_args(arguments).k
    chosen = [mutant for mutant in MUTANTS if part in f"{mutant} {' '.join(mutant.tests)}"]
    if not chosen:
        print(f"no mutant has {part!r}" if part else "there are no mutants")
        return 1
    return 1 if run_all(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
