"""`packedbag.recsys.tensorboard`."""

import sys

import pytest

from packedbag.core.errors import MissingExtraError
from packedbag.recsys.progress import Progress
from packedbag.recsys.tensorboard import TAGS, TensorBoard, require
from tests.recsys.made_epoch import epoch


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for ask in (require, lambda: TensorBoard(tmp_path / "t")):
        with pytest.raises(
            MissingExtraError,
            match=r"--tensorboard needs tensorboard, which is not installed\. "
            r"Run: pip install 'packedbag\[tensorboard\]'",
        ):
            ask()
    assert not (tmp_path / "t").exists()


def written(folder, *epochs, progress=None):
    with TensorBoard(folder) as board:
        board.start(progress or Progress())
        for each in epochs:
            board.epoch(each)


def read(folder):
    """Return what TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 asks for all points instead of a sample of them.
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture
def installed():
    pytest.importorskip("tensorboard")


@pytest.mark.usefixtures("installed")
def test_scalars_are_those_of_the_log(tmp_path):
    written(tmp_path, epoch(1), epoch(2, loss=0.25))
    found = read(tmp_path)
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    plain = epoch(2, loss=0.25).plain()
    for key, tag in TAGS.items():
        assert found.Scalars(tag)[-1].value == pytest.approx(plain[key], rel=1e-6)
    assert found.Scalars("flip_rate/user")[0].value == pytest.approx(0.008)
    assert found.Scalars("untouched_rows/item")[0].value == 9
    assert "flip_rate/item" not in found.Tags()["scalars"]  # its rate is not a number


@pytest.mark.usefixtures("installed")
def test_confidences_are_a_histogram_of_exact_counts(tmp_path):
    written(tmp_path, epoch(3))
    found = read(tmp_path)
    assert found.Tags()["histograms"] == ["confidence/user"]
    (point,) = found.Histograms("confidence/user")
    value = point.histogram_value
    assert point.step == 3
    assert list(value.bucket) == [5, 0, 2, 1]
    assert list(value.bucket_limit) == [0.5, 1.5, 2.5, 3.5]
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0, 3, 8, 7, 17)


@pytest.mark.usefixtures("installed")
def test_tables_that_are_not_packed_write_quality_alone(tmp_path):
    written(tmp_path, epoch(1, tables={}, flip_rate=None))
    tags = read(tmp_path).Tags()
    assert tags["histograms"] == []
    assert set(tags["scalars"]) == set(TAGS.values()) - {"train/flip_rate"}


@pytest.mark.usefixtures("installed")
def test_a_run_that_goes_on_replaces_the_epochs_that_it_does_again(tmp_path):
    written(tmp_path, epoch(1), epoch(2), epoch(3))
    written(tmp_path, epoch(3, loss=0.125), epoch(4), progress=Progress(epoch=2))
    points = read(tmp_path).Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.5), (3, 0.125), (4, 0.5)]
