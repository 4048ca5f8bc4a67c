"""Huge pages for large tables."""

from pathlib import Path

import pytest
import torch

from packedbag.backends import missing
from packedbag.ops.memory import empty_table

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_kilobytes(tensor):
    """Return how much of the mapping that holds ``tensor`` lies in huge pages."""
    inside, address = False, tensor.data_ptr() + tensor.nbytes // 2
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= address < high
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1])
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(missing("native_cpu") is not None, reason="the advice is given by the native backend")
@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system has no transparent huge pages"
)
@pytest.mark.host
def test_a_large_table_lies_in_huge_pages():
    table = empty_table((1_000_000, 16)).zero_()
    assert huge_kilobytes(table) * 1024 > table.nbytes // 2


def test_small_tables_and_other_devices_are_left_alone():
    assert empty_table((3, 2)).shape == (3, 2)
    assert empty_table((3, 2), torch.device("meta")).is_meta
