"""`packedbag.cli.progress` and `packedbag.cli.console`."""

import errno
import io

import pytest
from rich.console import Console

from packedbag.cli.console import guarded
from packedbag.cli.interrupt import StopWish
from packedbag.cli.progress import ReadingBar, TrainingBar
from packedbag.core.errors import ArgumentError
from packedbag.recsys.progress import Progress
from tests.recsys.made_epoch import PACKED, epoch


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def shown(console, train_rows=1000, quiet=False, made=PACKED):
    with TrainingBar(console, "packed", 5, train_rows, StopWish(), quiet=quiet) as bar:
        for batch in range(1, 4):
            bar.step(Progress(epoch=1, batch=batch, loss_sum=0.5 * 250 * batch, rows=250 * batch), 250)
        bar.epoch(made)
    return console.file.getvalue()


def test_a_terminal_sees_a_bar_with_loss_speed_and_memory():
    text = shown(console(terminal=True))
    assert "━" in text
    assert "loss 0.5000" in text
    assert "samples/s" in text
    assert "memory" in text
    assert "25%" in text


def test_rows_are_counted_where_their_number_is_not_known():
    assert "250 rows" in shown(console(terminal=True), train_rows=None)


def test_without_a_terminal_there_is_one_line_an_epoch():
    lines = shown(console(terminal=False)).splitlines()
    assert len(lines) == 1
    assert lines[0] == (
        "packed  epoch  2/5  loss 0.5000    1,000 samples/s  memory 500 MB  flips 0.8 %  "
        "validation AUC 0.7500  log loss 0.6250  best so far"
    )


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.123, "12 %"), (0.0644, "6.4 %"), (0.00034, "0.034 %"), (1e-7, "below 0.001 %"), (0.0, "0 %"), (None, "-")],
)
def test_flips_are_shown_over_orders_of_magnitude(rate, text):
    line = shown(console(terminal=False), made=epoch(flip_rate=rate))
    assert f"memory 500 MB  flips {text}  validation AUC" in line


def test_an_epoch_that_is_not_the_best_and_tables_that_are_not_packed_say_nothing_of_it():
    line = shown(console(terminal=False), made=epoch(best=False, tables={}, flip_rate=None))
    assert "memory 500 MB  validation AUC 0.7500  log loss 0.6250\n" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(terminal):
    quiet = console(terminal)
    with ReadingBar(quiet, quiet=True) as bar:
        bar.rows(5)
    assert shown(quiet, quiet=True) == ""


def test_reading_shows_rows_on_a_terminal_alone():
    for terminal in (True, False):
        target = console(terminal)
        with ReadingBar(target, quiet=False) as bar:
            bar.rows(123_456)
            bar.rows(234_567)
        assert ("234,567 rows" in target.file.getvalue()) == terminal


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArgumentError("lr", -1, "at least 0"), 2, "error: lr is -1; it must be at least 0.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "r.json"), 1, "error: r.json: No space left on device\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_what_is_not_a_defect_ends_without_a_traceback(capsys, error, code, message):
    def work():
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(work)
    assert ended.value.code == code
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_a_message_with_brackets_is_printed_as_it_is(capsys):
    def work():
        raise ArgumentError("x", "[bold]", "plain")

    with pytest.raises(SystemExit):
        guarded(work)
    assert "x is [bold]; it must be plain" in capsys.readouterr().err
