"""`packedbag doctor` says what runs, why something does not, and what to install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from packedbag.backends.registry import REGISTRY, missing
from packedbag.cli import diagnosis

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, command: str = "packedbag.cli", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``packedbag doctor`` as a user does, in a process of its own."""
    named = ["doctor", *arguments] if command == "packedbag.cli" else list(arguments)
    return subprocess.run(
        [sys.executable, "-m", command, *named],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_doctor_names_every_backend_and_exits_with_0() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    for name in REGISTRY:
        assert f"  {name:<12} " in done.stdout
    assert "(in use)" in done.stdout


def test_doctor_json_holds_the_facts_of_this_machine() -> None:
    pytest.importorskip("typer")
    facts = json.loads(doctor("--json").stdout)
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(facts["backends"]) == set(REGISTRY)
    assert facts["backend"] == facts["available"][0]
    assert facts["threads"]["cores"] >= 1


def test_a_forced_instruction_set_is_reported() -> None:
    if missing("native_cpu"):
        pytest.skip(f"native_cpu is missing: {missing('native_cpu')}")
    facts = json.loads(doctor("--json", PACKEDBAG_ISA="scalar").stdout)
    assert facts["kernels"]["in_use"] == facts["kernels"]["forced"] == "scalar"
    assert "scalar" in facts["kernels"]["usable"]


def test_a_backend_that_cannot_run_is_reported_with_its_reason_and_exits_with_1() -> None:
    done = doctor(PACKEDBAG_BACKEND="abacus")
    assert done.returncode == 1
    assert "problem: backend 'abacus' does not exist" in done.stdout


def test_a_library_that_cannot_be_loaded_is_given_as_the_reason() -> None:
    done = doctor(PACKEDBAG_NATIVE_LIBRARY="no/such/library.so")
    assert done.returncode == 0
    assert "native_cpu   missing: " in done.stdout
    assert "no/such/library.so" in done.stdout
    assert "eager        runs (in use)" in done.stdout


def test_the_facts_need_no_extra() -> None:
    hide = "import sys; sys.modules.update(typer=None, rich=None, sklearn=None, matplotlib=None)\n"
    run = "from packedbag.cli.diagnosis import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout


def test_the_module_prints_what_the_command_prints() -> None:
    assert doctor(command="packedbag.cli.diagnosis").stdout == doctor().stdout


def test_every_extra_of_pyproject_is_listed_with_what_it_includes(monkeypatch: pytest.MonkeyPatch) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [f'{requirement}; extra == "{extra}"' for extra, required in listed.items() for requirement in required]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy>=2", "torch>=2.6", *lines])
    extras = diagnosis.extras()
    assert set(extras) == set(listed)
    assert {"typer", "rich", "scikit-learn"} <= set(extras["train"]["libraries"])
    assert {"typer", "safetensors", "matplotlib", "pytest"} <= set(extras["dev"]["libraries"])


def test_a_missing_library_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ['surely-not-installed>=1; extra == "rare"', 'numpy>=2; extra == "plain"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    text = diagnosis.describe(diagnosis.diagnose())
    assert "rare         missing surely-not-installed; pip install 'packedbag[rare]'" in text
    assert "plain        installed" in text


def test_an_uninstalled_source_tree_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(_: str) -> Any:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", not_found)
    assert diagnosis.extras() == {}
    assert "packedbag is not installed here" in diagnosis.describe(diagnosis.diagnose())


@pytest.mark.parametrize(
    ("content", "setting"),
    [("always [madvise] never\n", "madvise"), ("[always] madvise never\n", "always"), ("strange", None)],
)
def test_the_setting_of_huge_pages_is_the_one_in_brackets(
    content: str, setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text(content)
    monkeypatch.setattr(diagnosis, "HUGE_PAGES", tmp_path / "enabled")
    assert diagnosis.huge_pages() == setting


def test_huge_pages_are_unknown_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "HUGE_PAGES", tmp_path / "absent")
    assert diagnosis.huge_pages() is None
    assert "huge pages   unknown" in diagnosis.describe(diagnosis.diagnose())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "packedbag.cli", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: input or output: No space left on device")
    assert "Traceback" not in done.stderr
