"""Many loads are under way at once: a compiler that puts a branch between two of them makes one wait."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu import machine_code

reason = machine_code.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.mark.parametrize(
    "expression", ["bag<int, 8, 1, 4>", "bag<i64, 8, 1, 4>", "bag<int, 8, 0, 0>", "bag<int, 4, 2, 0>"]
)
def test_eight_indices_and_then_eight_rows_are_asked_for_together(expression: str) -> None:
    loads = [stretch.count("LDG") for stretch in machine_code.stretches(machine_code.disassembled("bag", expression))]
    # Indices, rows where none is left out, rows where some are.
    assert sum(number >= 8 for number in loads) >= 3, loads


def test_eight_usual_entries_take_few_instructions() -> None:
    """Indices, checks, addresses, loads and the carry-save tree; measured: 27 and 30, and 26 of the tree."""
    found = machine_code.stretches(machine_code.disassembled("bag", "bag<int, 8, 1, 4>"))
    usual = sorted(len(stretch) for stretch in found if stretch.count("LDG") == 8)
    assert sum(usual[:2]) <= 80


@pytest.mark.parametrize("index", ["int", "i64"])
@pytest.mark.parametrize("tile", [1, 2, 4, 8])
def test_a_step_asks_for_eight_words_and_their_planes_together(index: str, tile: int) -> None:
    text = machine_code.disassembled("row_update", f"row_update<{index}, {tile}>")
    loads = [stretch.count("LDG") for stretch in machine_code.stretches(text)]
    assert sum(number >= 16 for number in loads) >= (2 if tile > 1 else 1), loads
    # A warp is known to stay together: nothing asks before each exchange between lanes whether it does.
    assert "BRA.DIV" not in text


def test_a_jump_and_a_label_end_a_stretch() -> None:
    text = "/*0000*/ LDG.E R1 ;\n/*0010*/ @P0 BRA `(.L_x_1) ;\n/*0020*/ IADD3 R1 ;\n.L_x_1:\n/*0030*/ @!P1 LDG.E R2 ;"
    assert machine_code.stretches(text) == [["LDG", "BRA"], ["IADD3"], ["LDG"]]
