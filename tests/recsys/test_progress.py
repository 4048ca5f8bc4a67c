"""`packedbag.recsys.progress`."""

import math

from packedbag.recsys.progress import Progress


def test_what_is_done_of_a_run_counts_rows():
    assert Progress(epoch=1, rows=50, epoch_rows=100).done(3) == 0.5
    assert Progress(epoch=0, rows=0, epoch_rows=100).done(3) == 0
    assert Progress(epoch=2, rows=100, epoch_rows=100).done(3) == 1


def test_while_the_rows_of_an_epoch_are_unknown_whole_epochs_count():
    assert Progress(epoch=0, rows=50).done(4) == 0
    assert Progress(epoch=1, rows=50).done(4) == 0.25


def test_no_more_than_all_is_ever_done():
    assert Progress(epoch=0, rows=101, epoch_rows=100).done(1) == 1
    assert Progress(epoch=5, rows=0, epoch_rows=100).done(3) == 1  # a resumed run was given fewer epochs


def test_the_first_epoch_tells_how_many_rows_one_has_and_later_ones_leave_it():
    progress = Progress(batch=3, rows=70, loss_sum=35.0)
    assert progress.loss == 0.5
    progress.spend(2.0)
    progress.next_epoch()
    assert progress == Progress(epoch=1, epoch_rows=70, seconds=2.0)
    assert math.isnan(progress.loss)
    progress.rows = 60
    progress.next_epoch()
    assert progress.epoch_rows == 70
