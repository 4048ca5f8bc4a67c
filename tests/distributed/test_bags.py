"""Pooled collections on 1 to 4 ranks: see `tests.distributed.bag_checks`."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import assert_ok

KINDS = ("table", "row", "column", "data", "table_row", "mixed")
OF_KINDS = (
    "8 bits",
    "2 bits",
    "flips",
    "votes",
    "plain",
    "float weights",
    "long bags",
    "weighted",
    "bf16",
    "values",
    "numbers",
    "frozen",
    "pipeline",
    "no gradients",
)
OTHERS = ["column: short numbers", "a bad gradient", "words split", "numbers split", "scales", "turns"]
CHECKS = [f"{kind}: {name}" for kind in KINDS for name in OF_KINDS] + OTHERS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (2, 2), (3, 3), (4, 2)])
def test_ranks_do_what_one_process_does(world: int, per_node: int, check: str) -> None:
    assert_ok("tests.distributed.bag_checks", check, world, per_node)
