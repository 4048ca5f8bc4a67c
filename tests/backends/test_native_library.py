"""Why the compiled library is missing is said exactly, and everything works without it."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import packedbag.backends
from packedbag.backends import native_cpu, native_library
from packedbag.core.errors import BackendError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget the library before each test, and what the test saw after it."""
    native_library._open.cache_clear()
    yield
    native_library._open.cache_clear()


def test_a_library_that_was_not_built_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native_library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(packedbag.backends, "__path__", [])
    reason = native_cpu.missing()
    assert reason is not None
    assert reason.startswith("libpackedbag_cpu.so was not built, because packedbag was installed without a C++17")
    assert "apt install g++" in reason
    assert "pip install" in reason
    with pytest.raises(BackendError, match=r"'native_cpu' cannot run here: libpackedbag_cpu\.so was not built"):
        native_library.load()


def test_a_file_that_is_no_library_is_named_with_the_loader_s_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "broken.so"
    file.write_text("not a library")
    monkeypatch.setenv(native_library.ENVIRONMENT, str(file))
    reason = native_library.missing()
    assert reason is not None
    assert reason.startswith(f"{file} cannot be loaded: ")
    assert len(reason) > len(f"{file} cannot be loaded: ")


def test_a_library_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native_library.ENVIRONMENT, str(tmp_path / "absent.so"))
    assert "absent.so cannot be loaded: " in str(native_library.missing())


def test_a_library_of_someone_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.util.find_library("m")
    assert other
    monkeypatch.setenv(native_library.ENVIRONMENT, other)
    assert "is not a library of packedbag: it has no pb_abi_version" in str(native_library.missing())


@pytest.mark.skipif(native_library.missing() is not None, reason="needs the compiled library")
def test_a_library_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = native_library.ABI_VERSION
    monkeypatch.setattr(native_library, "ABI_VERSION", 999)
    reason = str(native_library.missing())
    assert f"has ABI version {built} and this packedbag needs 999" in reason
    assert "pip install" in reason


def test_huge_page_advice_is_silently_nothing_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(native_library.ENVIRONMENT, str(tmp_path / "absent.so"))
    assert native_cpu.advise_huge_pages(np.zeros(16 << 20, np.uint8)) is False


def test_without_the_library_bags_are_computed_and_the_reason_is_at_hand(tmp_path: Path) -> None:
    code = (
        "import numpy as np\n"
        "from packedbag import PackedTable, backends\n"
        "assert 'native_cpu' not in backends.available('cpu')\n"
        "assert 'cannot be loaded' in backends.missing('native_cpu')\n"
        "table = PackedTable(np.array([[1], [3]], np.uint32), 2)\n"
        "assert table.bag(np.array([[0, 1]])).tolist() == [[2, 0]]\n"
    )
    environment = {native_library.ENVIRONMENT: str(tmp_path / "absent.so"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=120)
    assert done.returncode == 0
