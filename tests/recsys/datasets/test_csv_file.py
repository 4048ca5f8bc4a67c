"""`packedbag.recsys.datasets.csv_file`."""

import tracemalloc

import numpy as np
import pytest

from packedbag.core.errors import ArgumentError, DataError
from packedbag.recsys.datasets import csv_file
from packedbag.recsys.datasets.csv_file import CsvFile


def source(tmp_path, text, **kwargs):
    path = tmp_path / "f.csv"
    path.write_text(text)
    return CsvFile(path, **{"label": "y", "categorical": ["a"], **kwargs})


def one(source):
    (chunk,) = source.chunks()
    return chunk


def test_columns_are_found_by_name_and_in_the_order_asked_for(tmp_path):
    chunk = one(source(tmp_path, "b,y,a\nb1,1,a1\nb2,0,a2\n", categorical=["a", "b"]))
    assert [tokens.text for tokens in chunk.columns] == [["a1", "a2"], ["b1", "b2"]]
    assert chunk.labels.tolist() == [1.0, 0.0]


def test_bags_are_split_and_may_be_empty(tmp_path):
    chunk = one(source(tmp_path, "y,a,t\n1,x,p|q\n0,x,\n1,x,q|\n", bags=["t"], bag_separator="|"))
    assert chunk.columns[1].text == ["p", "q", "q"]
    assert chunk.columns[1].offsets.tolist() == [0, 2, 2, 3]


def test_quotes_other_delimiters_and_blank_lines_are_understood(tmp_path):
    chunk = one(source(tmp_path, 'y;a\n1;"x;\n1"\n\n0;z\n', delimiter=";"))
    assert chunk.columns[0].text == ["x;\n1", "z"]


def test_a_threshold_turns_ratings_into_labels(tmp_path):
    chunk = one(source(tmp_path, "y,a\n4,x\n3.5,x\n5,x\n", threshold=4))
    assert chunk.labels.tolist() == [1.0, 0.0, 1.0]


def test_minus_one_is_a_negative_label(tmp_path):
    assert one(source(tmp_path, "y,a\n-1,x\n1,x\n")).labels.tolist() == [0.0, 1.0]


def test_times_are_numbers(tmp_path):
    assert one(source(tmp_path, "y,a,t\n1,x,10\n0,x,1e3\n", time="t")).clock().tolist() == [10.0, 1000.0]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("y,a\n1,x\n2,x\n", 3, r"the label is '2'; it must be 0 or 1 \(or -1 for 0\)\. Pass --threshold X"),
        ("y,a\n1,x\nyes,x\n", 3, "the label is 'yes', which is not a number"),
        ("y,a\n1,x\n1\n", 3, "has 1 columns where the first line names 2"),
        ("y,a\n1,x,z\n", 2, "has 3 columns where the first line names 2"),
        ("y,b\n1,x\n", 1, "names no column 'a'; its columns are y, b"),
        ("y,a,a\n1,x,x\n", 1, "names the column 'a' more than once"),
        ('y,a\n1,"x\n', 2, "is not valid CSV"),
        ("", None, "is empty. The first line must name the columns"),
        ("y,a\n", None, "has no rows"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, text, line, message):
    with pytest.raises(DataError, match=message) as caught:
        list(source(tmp_path, text).chunks())
    assert caught.value.line == line
    assert str(caught.value).startswith(str(tmp_path / "f.csv") + (f", line {line}: " if line else ": "))


@pytest.mark.parametrize("text", ["nan", "inf", "noon", ""])
def test_a_time_that_is_no_number_is_named(tmp_path, text):
    with pytest.raises(DataError, match=f"line 2: column 't' holds '{text}', which is not a number"):
        list(source(tmp_path, f"y,a,t\n1,x,{text}\n", time="t").chunks())


def test_a_label_that_is_nan_is_refused_with_a_threshold(tmp_path):
    with pytest.raises(DataError, match="line 2: the label is 'nan'"):
        list(source(tmp_path, "y,a\nnan,x\n", threshold=3).chunks())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"categorical": []}, r"categorical is empty, and so is bag; .* Pass --categorical a,b or --bag c\."),
        ({"categorical": ["y"]}, "categorical is one that contains 'y'; it must be free of the label and the time"),
        ({"categorical": ["a"], "bags": ["a"]}, "categorical is a,a; it must be free of repetitions"),
        ({"delimiter": "||"}, r"delimiter is '\|\|'; it must be a single character"),
        ({"bag_separator": ""}, "bag_separator is empty"),
    ],
)
def test_wrong_options_are_refused(tmp_path, kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        source(tmp_path, "y,a\n", **kwargs)


def test_a_long_file_is_read_in_chunks_of_bounded_memory(tmp_path):
    path = tmp_path / "f.csv"
    rows = 200_000
    with path.open("w") as file:
        file.write("y,a,b\n")
        file.writelines(f"{i % 2},user-{i:020},item-{i % 977:020}\n" for i in range(rows))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    total = 0
    for chunk in CsvFile(path, label="y", categorical=["a", "b"]).chunks():
        assert chunk.first_row == total
        total += len(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == rows
    # A chunk's strings take some 150 bytes a row; two chunks are alive while the loop turns over.
    assert peak < 3 * 150 * csv_file.CHUNK_ROWS


def test_chunks_join_to_the_whole(tmp_path, monkeypatch):
    text = "y,a,t\n" + "".join(f"{i % 2},a{i},{' '.join(['q'] * (i % 3))}\n" for i in range(25))
    whole = one(source(tmp_path, text, bags=["t"]))
    monkeypatch.setattr(csv_file, "CHUNK_ROWS", 10)
    parts = list(source(tmp_path, text, bags=["t"]).chunks())
    assert [p.first_row for p in parts] == [0, 10, 20]
    np.testing.assert_array_equal(np.concatenate([p.labels for p in parts]), whole.labels)
    for i in range(2):
        assert [t for p in parts for t in p.columns[i].text] == whole.columns[i].text
