"""`packedbag.recsys.log`."""

import errno
import json
import os

import pytest

from packedbag.core.errors import CheckpointError
from packedbag.recsys.log import EpochLog
from packedbag.recsys.progress import Progress
from tests.recsys.made_epoch import PACKED, epoch


@pytest.fixture
def log(tmp_path):
    """A log of epochs 1 to 3."""
    log = EpochLog(tmp_path)
    log.start(Progress())
    for number in (1, 2, 3):
        log.epoch(epoch(number))
    return log


def numbers(log):
    return [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()]


def test_every_epoch_is_a_line_that_holds_everything(log):
    lines = log.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [epoch(number).plain() for number in (1, 2, 3)]
    assert json.loads(lines[1]) == {
        "epoch": 2,
        "steps": 300,
        "loss": 0.5,
        "valid_auc": 0.75,
        "valid_log_loss": 0.625,
        "best": True,
        "seconds": 2.0,
        "samples_per_second": 1000.0,
        "lr": 0.001,
        "table_lr": 0.02,
        "resident_bytes": 500_000_000,
        "flip_rate": 0.008,
        "tables": {
            "user": {"flip_rate": 0.008, "untouched_rows": 3, "confidences": [5, 0, 2, 1]},
            "item": {"flip_rate": None, "untouched_rows": 9, "confidences": None},
        },
    }


def test_an_epoch_can_be_read_as_soon_as_it_is_told(tmp_path):
    log = EpochLog(tmp_path)
    log.start(Progress())
    log.epoch(PACKED)
    assert log.path.read_bytes().endswith(b"\n")
    assert numbers(log) == [2]


@pytest.mark.parametrize(("done", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_run_that_goes_on_drops_the_epochs_that_it_will_do_again(log, done, kept):
    log.start(Progress(epoch=done, batch=5))
    assert numbers(log) == kept
    log.epoch(epoch(done + 1))
    assert numbers(log) == [*kept, done + 1]


def test_a_line_that_a_killed_process_left_half_written_is_dropped(log):
    whole = log.path.read_bytes()
    for torn in (whole[:-1], whole[:-20], whole + b"{", whole + b'{"epoch": 4', whole + b"[1]\n\n4\n"):
        log.path.write_bytes(torn)
        log.start(Progress(epoch=4))
        assert numbers(log) == ([1, 2, 3] if torn.startswith(whole) else [1, 2])


def test_a_log_with_nothing_to_drop_is_not_written_again(log):
    before = log.path.stat()
    log.start(Progress(epoch=3))
    assert log.path.stat().st_ino == before.st_ino


def test_a_new_run_keeps_the_log_of_an_earlier_one(log):
    content = log.path.read_bytes()
    kept = log.keep_old()
    assert kept.name == "log.old.jsonl"
    assert kept.read_bytes() == content
    assert not log.path.exists()
    assert log.keep_old() is None


def test_a_full_disk_is_said_in_words(log, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError,
        match=r"log\.jsonl: the log could not be written: No space left on device\. Make room or pass another "
        r"--output, then continue with --resume\.",
    ):
        log.epoch(PACKED)
