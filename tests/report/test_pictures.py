"""`packedbag.report.bars`, `packedbag.report.plots` and `packedbag.report.page`."""

import re
import struct
import sys
from html.parser import HTMLParser

import pytest

from packedbag.core.errors import MissingExtraError
from packedbag.report import plots
from packedbag.report.bars import PARTS, WHOLE, legend, panels, times_text
from packedbag.report.kinds.kind import Shape
from packedbag.report.page import page
from tests.report.made_report import NAMED, report

LARGE = (Shape(1_000_000, 128),)


def test_the_parts_of_a_bar_are_table_state_gradient_and_the_rest_of_the_peak():
    made = report()
    step, table, checkpoint = panels(made)
    for line, bar in zip(made.lines, step.bars, strict=True):
        assert bar.parts[:3] == [line.best.table, line.best.state, line.best.gradient]
        assert bar.total == line.best.peak
    assert [bar.total for bar in table.bars] == [line.best.table for line in made.lines]
    assert [bar.total for bar in checkpoint.bars] == [line.best.checkpoint for line in made.lines]


def test_bars_are_in_proportion_and_the_longest_fills_the_width():
    table = panels(report(shapes=LARGE))[1]
    ends = [table.pieces(bar)[-1][1] for bar in table.bars]
    assert ends[0] == 1
    assert ends[-1] == pytest.approx(1 / 32)
    assert [color for _, _, color in table.pieces(table.bars[0])] == [PARTS["table"]]


def test_pieces_touch():
    step = panels(report(shapes=LARGE))[0]
    for bar in step.bars:
        pieces = step.pieces(bar)
        assert [start for start, _, _ in pieces] == [0.0, *(end for _, end, _ in pieces[:-1])]


def test_a_bar_that_would_be_too_short_makes_the_axis_logarithmic_and_bars_whole():
    step = panels(report(shapes=LARGE, bits=1))[0]
    assert step.log
    assert step.title == "peak in a training step (log scale)"
    pieces = [step.pieces(bar) for bar in step.bars]
    assert all(len(each) == 1 and each[0][2] == WHOLE for each in pieces)
    ends = [each[0][1] for each in pieces]
    assert max(ends) == 1
    assert min(ends) > 0.1
    assert sorted(ends) == sorted(ends, key=lambda end: step.bars[ends.index(end)].total)


def test_labels_give_bytes_and_how_many_times_packed():
    assert panels(report())[1].labels() == ["256 kB, 32x", "128 kB, 16x", "72 kB, 9x", "64 kB, 8x", "8 kB"]
    assert legend(report()) == "measured; 2x: twice packed, k = 8"
    assert legend(report(measured=(), keys=("fp32",))) == "computed"
    assert times_text(100.4) == "100x"


def test_only_bars_among_measured_ones_are_marked_as_computed():
    assert [panel.marks(bar) for panel in panels(report()) for bar in panel.bars][:5] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not any(panel.marks(bar) for panel in panels(report(measured=())) for bar in panel.bars)


# Drawn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 8], ids=["log", "linear"])
def test_a_png_is_drawn_wide_enough_to_read(tmp_path, bits):
    pytest.importorskip("matplotlib")
    plots.draw(report(shapes=LARGE, bits=bits), tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1500
    assert height > 300


def test_an_svg_holds_text_and_is_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.SVG"):
        plots.draw(report(shapes=LARGE), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.SVG").read_text()
    for shown in ("1,000,000 rows x 128 weights", "packed, k = 8", "row-wise Adagrad", "512 MB, 32x", "(computed)"):
        assert shown in text


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(OSError, match="none"):
        plots.draw(report(), tmp_path / "none" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'packedbag\[plot\]'"):
        plots.require()


# The page ------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects text, tags and attributes; fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags, self.values = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value for _, value in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(made):
    reader = Reader()
    reader.feed(page(made))
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_needs_nothing_from_elsewhere():
    reader = read(report())
    assert reader.tags.count("svg") == 3
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    text = page(report())
    assert re.findall(r"https?:|url\(|@import|src=", text) == []
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_every_number_computed_and_measured():
    text = "\n".join(read(report(shapes=LARGE, factor=1.2)).texts)
    for shown in ("512 MB, 32x", "computed", "measured", "not measured: needs 9 GB, and 1 GB may be used", "1.23 GB*"):
        assert shown in text
    assert "* differs from what was computed by more than 10 %" in text
    assert "pale: computed" in text


def test_the_page_shows_each_table_of_a_model_and_no_name_is_markup():
    reader = read(report(shapes=NAMED))
    assert "<b>&item" in reader.texts
    assert "b" not in reader.tags
    assert "50 x 32" in reader.texts
    assert "Table by table, the weights alone" not in read(report()).texts
