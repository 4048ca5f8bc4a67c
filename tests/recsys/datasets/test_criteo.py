"""`packedbag.recsys.datasets.criteo`."""

import math

import pytest

from packedbag.core.errors import DataError
from packedbag.recsys.datasets import criteo
from packedbag.recsys.datasets.criteo import Criteo, bucket


def line(label="1", integers=None, ids=None):
    return "\t".join([label, *(integers or ["5"] * 13), *(ids or [f"{i:08x}" for i in range(26)])]) + "\n"


def written(tmp_path, *lines):
    (tmp_path / "train.txt").write_text("".join(lines))
    return Criteo(tmp_path / "train.txt")


def test_a_line_is_a_label_13_buckets_and_26_ids(tmp_path):
    (chunk,) = written(tmp_path, line(), line("0")).chunks()
    assert chunk.labels.tolist() == [1.0, 0.0]
    assert len(chunk.columns) == 39
    assert chunk.columns[0].text == [bucket(5)] * 2
    assert chunk.columns[13].text == ["00000000"] * 2
    assert [f.name for f in Criteo.fields[12:15]] == ["I13", "C1", "C2"]


def test_an_empty_value_is_an_id_of_its_own(tmp_path):
    (chunk,) = written(tmp_path, line(integers=[""] * 13, ids=[""] * 26), line(integers=["0"] * 13)).chunks()
    assert chunk.columns[0].text == ["", "0"]
    assert chunk.columns[20].text[0] == ""


def test_buckets_grow_with_the_count_and_keep_small_counts_apart():
    ordered = [bucket(v) for v in range(-2, 3)]
    assert ordered == ["-2", "-1", "0", "1", "2"]
    numbers = [int(bucket(v)[1:]) for v in range(3, 10_000)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) < 90
    assert not {bucket(v) for v in range(-2, 3)} & {bucket(v) for v in range(3, 100)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line().replace("\t", " ", 1), "line 2: has 39 columns; the Criteo layout has 40, tabs between them"),
        (line("7"), "line 2: the label is '7'; it must be 0 or 1"),
        (line(integers=["x"] + ["1"] * 12), "line 2: holds 'x' where an integer belongs"),
        (line()[:60], r"line 2: has \d+ columns; the Criteo layout has 40"),
    ],
)
def test_bad_lines_are_named(tmp_path, bad, message):
    with pytest.raises(DataError, match=message):
        list(written(tmp_path, line(), bad).chunks())


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.txt: has no rows\."):
        list(written(tmp_path).chunks())


def test_a_file_is_read_chunk_by_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 2)
    chunks = written(tmp_path, *[line(str(i % 2)) for i in range(5)], "broken\n").chunks()
    assert [len(next(chunks)), len(next(chunks))] == [2, 2]
    with pytest.raises(DataError, match="line 6"):
        next(chunks)


@pytest.mark.parametrize("digits", [19, 25, 400])
def test_a_count_of_any_length_has_a_bucket(digits):
    assert bucket(10**digits) == f"b{int((digits * math.log(10)) ** 2)}"
