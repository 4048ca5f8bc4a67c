"""`packedbag.recsys.datasets.libfm`."""

import pytest

from packedbag.core.errors import DataError
from packedbag.recsys.datasets import libfm
from packedbag.recsys.datasets.libfm import LibFm


def written(tmp_path, text, **kwargs):
    (tmp_path / "f.libfm").write_text(text)
    return LibFm(tmp_path / "f.libfm", **kwargs)


def test_a_line_is_a_weighted_bag(tmp_path):
    (chunk,) = written(tmp_path, "1 0:1 7:0.5\n# a comment\n\n-1\n0 3:-2e1 3:1\n").chunks()
    (tokens,) = chunk.columns
    assert chunk.labels.tolist() == [1.0, 0.0, 0.0]
    assert tokens.text == ["0", "7", "3", "3"]
    assert tokens.offsets.tolist() == [0, 2, 2, 4]
    assert tokens.weights.tolist() == [1.0, 0.5, -20.0, 1.0]


def test_ratings_need_a_threshold(tmp_path):
    with pytest.raises(DataError, match=r"f\.libfm, line 1: the label is '5'.*Pass --threshold X"):
        list(written(tmp_path, "5 1:1\n").chunks())
    (chunk,) = written(tmp_path, "5 1:1\n2 1:1\n", threshold=4).chunks()
    assert chunk.labels.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "entry", ["3", "3:", ":1", "x:1", "3:x", "-3:1", "3:nan", "3:inf", "3:1e39", "3:-1e300", "1.5:1"]
)
def test_a_bad_entry_is_named_with_its_line(tmp_path, entry):
    with pytest.raises(DataError, match=f"line 2: holds '{entry}' where index:value belongs"):
        list(written(tmp_path, f"1 0:1\n1 0:1 {entry}\n").chunks())


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"f\.libfm: has no rows"):
        list(written(tmp_path, "# nothing\n").chunks())


def test_a_file_is_read_chunk_by_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(libfm, "CHUNK_ROWS", 2)
    chunks = list(written(tmp_path, "".join(f"{i % 2} {i}:1\n" for i in range(5))).chunks())
    assert [(c.first_row, len(c)) for c in chunks] == [(0, 2), (2, 2), (4, 1)]
    assert [t for c in chunks for t in c.columns[0].text] == ["0", "1", "2", "3", "4"]
    assert chunks[1].columns[0].offsets.tolist() == [0, 1, 2]


def test_a_line_without_an_end_is_not_printed_whole(tmp_path):
    (tmp_path / "f").write_bytes(b"\0" * 1_000_000)
    with pytest.raises(DataError, match="the label is") as caught:
        list(LibFm(tmp_path / "f").chunks())
    assert len(str(caught.value)) < 1000
