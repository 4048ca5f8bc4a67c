"""Gradients of values of several bits between ranks: see `tests.distributed.gradient_cases`."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import assert_all_ok


@pytest.mark.parametrize(("world", "per_node"), [(2, 2), (4, 2)])
def test_a_number_a_value_travels_and_trains_as_in_one_process(world: int, per_node: int) -> None:
    assert assert_all_ok("tests.distributed.gradient_cases", world, per_node) > 30
