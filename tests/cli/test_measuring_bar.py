"""`packedbag.cli.measuring_bar`."""

import io

import pytest
from rich.console import Console

from packedbag.cli.measuring_bar import MeasuringBar
from packedbag.report.step_memory import STAGES
from tests.report.made_report import report


def shown(terminal, quiet=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with MeasuringBar(console, report().lines, quiet=quiet) as bar:
        for _ in bar.each():
            for stage in STAGES:
                bar.stage(stage)
                bar._bar.refresh()
    return console.file.getvalue()


def test_a_terminal_sees_what_is_measured_how_fast_and_how_long_it_will_take():
    text = shown(terminal=True)
    for part in ("fp32: build", "packed, k = 8: checkpoint", "━", "B/s", "0:00:0", " 20%", "100%"):
        assert part in text


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_elsewhere_and_when_quiet_there_is_nothing(terminal, quiet):
    assert shown(terminal, quiet) == ""
