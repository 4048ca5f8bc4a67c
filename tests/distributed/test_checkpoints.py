"""Checkpoints of one number of ranks, taken over by another: see `tests.distributed.checkpoint_checks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import assert_ok

MODULE = "tests.distributed.checkpoint_checks"
KINDS = ("table", "row", "column", "data", "table_row", "mixed")
SAVES = [
    *(f"{kind}: {what}" for what in ("saves", "exports") for kind in KINDS),
    "numbers: saves",
    "a state dict",
    "refusals",
]
GOES_ON = [f"{kind}: goes on from {KINDS[(i + step) % len(KINDS)]}" for i, kind in enumerate(KINDS) for step in (1, 3)]
GOES_ON.append("numbers: goes on")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def environment(shared: Path, role: str) -> tuple[tuple[str, str], ...]:
    return (("PACKEDBAG_TEST_FOLDER", str(shared)), ("PACKEDBAG_TEST_ROLE", role))


@pytest.mark.parametrize("check", SAVES)
def test_three_ranks_save(shared: Path, check: str) -> None:
    assert_ok(MODULE, check, 3, environment=environment(shared, "save"))


@pytest.mark.parametrize("check", GOES_ON)
@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (2, 2), (4, 2)])
def test_another_number_of_ranks_goes_on(shared: Path, world: int, per_node: int, check: str) -> None:
    if not (shared / "table").exists():
        assert_ok(MODULE, SAVES[0], 3, environment=environment(shared, "save"))
    assert_ok(MODULE, check, world, per_node, environment(shared, "load"))
