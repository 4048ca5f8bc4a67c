"""`packedbag.recsys.datasets.lines`."""

import gzip
import os

import pytest

from packedbag.core.errors import DataError
from packedbag.recsys.datasets.criteo import Criteo
from packedbag.recsys.datasets.csv_file import CsvFile
from packedbag.recsys.datasets.libfm import LibFm
from packedbag.recsys.datasets.lines import identity, read_lines


def test_plain_and_compressed_files_read_the_same(tmp_path):
    text = "a\nä\r\n\nlast"
    (tmp_path / "f").write_bytes(text.encode())
    with gzip.open(tmp_path / "f.gz", "wb") as file:
        file.write(text.encode())
    assert list(read_lines(tmp_path / "f")) == ["a\n", "ä\r\n", "\n", "last"]
    assert list(read_lines(tmp_path / "f.gz")) == ["a\n", "ä\r\n", "\n", "last"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfa\n")
    assert list(read_lines(tmp_path / "f")) == ["a\n"]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none: cannot be read: No such file or directory\."):
        list(read_lines(tmp_path / "none"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_lines(tmp_path))


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    (tmp_path / "f").write_bytes(b"a\n" * 100_000 + b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"f, line 100001: is not UTF-8 text \(invalid start byte\)"):
        list(read_lines(tmp_path / "f"))


@pytest.mark.parametrize("cut", [11, 40, 2000])
def test_a_compressed_file_cut_short_is_named_with_the_line(tmp_path, cut):
    whole = gzip.compress("".join(f"{i} {i * i % 9973}\n" for i in range(5000)).encode())
    (tmp_path / "f.gz").write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"f\.gz, line \d+: the compressed file ends too soon\. Fetch it again\."):
        list(read_lines(tmp_path / "f.gz"))


def test_a_damaged_or_misnamed_compressed_file_is_named(tmp_path):
    (tmp_path / "f.gz").write_text("not compressed")
    with pytest.raises(DataError, match=r"f\.gz, line 1: cannot be read: Not a gzipped file"):
        list(read_lines(tmp_path / "f.gz"))
    whole = bytearray(gzip.compress(b"".join(b"%d\n" % (i * i) for i in range(5000))))
    whole[200:220] = bytes(20)
    (tmp_path / "f.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"f\.gz, line \d+: cannot be read: "):
        list(read_lines(tmp_path / "f.gz"))


def test_a_file_is_known_by_its_name_and_size_wherever_it_lies(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f").write_text("12345")
    assert identity(tmp_path / "a" / "f") == identity(tmp_path / "b" / "f") == "f (5 bytes)"
    with pytest.raises(DataError, match="none: cannot be read: No such file"):
        identity(tmp_path / "none")


@pytest.mark.parametrize("make", [LibFm, Criteo, lambda path: CsvFile(path, label="y", categorical=["a"])])
def test_a_source_tells_a_file_that_grew(tmp_path, make):
    path = tmp_path / "f"
    path.write_text("1 1:1\n")
    before = make(path).name
    path.write_text("1 1:1\n0 2:1\n")
    assert make(path).name != before


def test_a_pipe_is_refused_because_files_are_read_several_times(tmp_path):
    os.mkfifo(tmp_path / "f")
    with pytest.raises(DataError, match="f: is a pipe or a device; a file is read several times"):
        next(read_lines(tmp_path / "f"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda path: LibFm(path, threshold=3), lambda path: LibFm(path, threshold=4)),
        (lambda path: csv_file(path, threshold=3), lambda path: csv_file(path, threshold=4)),
        (lambda path: csv_file(path), lambda path: csv_file(path, label="z")),
        (lambda path: csv_file(path), lambda path: csv_file(path, bag_separator="|")),
    ],
)
def test_a_source_tells_other_labels_and_other_bags(tmp_path, one, other):
    (tmp_path / "f").write_text("y,z,a\n")
    assert one(tmp_path / "f").name == one(tmp_path / "f").name != other(tmp_path / "f").name


def csv_file(path, **kwargs):
    return CsvFile(path, **{"label": "y", "bags": ["a"], **kwargs})
