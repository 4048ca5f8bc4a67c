"""Collections of sequences on 1 to 4 ranks: see `tests.distributed.sequence_cases`."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import assert_all_ok


@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (2, 2), (3, 3), (4, 2)])
def test_ranks_look_rows_up_and_train_as_one_process_does(world: int, per_node: int) -> None:
    assert assert_all_ok("tests.distributed.sequence_cases", world, per_node) > 20
