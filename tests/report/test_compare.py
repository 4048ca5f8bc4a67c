"""`packedbag.report.compare` and `packedbag.report.csv_text`."""

import csv
import io
import json

import pytest

from packedbag.report import compare
from packedbag.report.compare import PARTS, compute, machine, measure_line
from packedbag.report.csv_text import csv_text
from packedbag.report.kinds.kind import Load, Shape
from packedbag.report.kinds.registry import make_kind
from packedbag.report.step_memory import Cost, MeasurementError
from tests.report.made_report import NAMED, report

OPTIONS = {"bits": 8, "optimizer": "adagrad"}
LARGE = (Shape(1_000_000, 64),)


def measured(monkeypatch, result):
    """Measure a line with a child that returns or raises ``result``; return the line."""

    def child(*args, **kwargs):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(compare, "measure", child)
    made = compute([make_kind("packed")], [Shape(1000, 64)], Load(32, 10))
    measure_line(made, made.lines[0], limit=10**9, options=OPTIONS, stage=lambda name: None)
    return made.lines[0]


def test_what_a_child_measured_is_noted_part_by_part(monkeypatch):
    line = measured(monkeypatch, Cost(1, 2, 3, 4, 5))
    assert line.measured.plain() == {"table": 1, "gradient": 2, "state": 3, "peak": 4, "checkpoint": 5}
    assert line.best is line.measured
    assert line.why_not is None


def test_a_child_that_fails_leaves_what_was_computed_and_the_reason(monkeypatch):
    line = measured(monkeypatch, MeasurementError("packed", "Traceback\nRuntimeError: no luck"))
    assert line.measured is None
    assert line.best is line.computed
    assert line.why_not == "RuntimeError: no luck"


def test_what_does_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(compare, "measure", lambda *args, **kwargs: pytest.fail("a child was started"))
    made = compute([make_kind("fp32")], LARGE, Load())
    measure_line(made, made.lines[0], limit=500_000_000, options=OPTIONS, stage=lambda name: None)
    assert made.lines[0].why_not == "needs 554 MB, and 500 MB may be used"


@pytest.mark.parametrize(("factor", "marked"), [(1.0, []), (1.09, []), (1.11, ["peak"]), (0.89, ["peak"])])
def test_a_measurement_further_than_a_tenth_from_the_formula_is_marked(factor, marked):
    line = report(shapes=LARGE, factor=factor).lines[0]
    assert [part for part in PARTS if line.differs(part)] == marked


def test_pages_that_come_and_go_are_no_difference():
    assert not report(factor=2).lines[0].differs("peak")


def test_the_title_says_what_is_compared_on_what():
    assert report().title == "1,000 rows x 64 weights; a batch of 32 bags of 10 ids, on the CPU"
    assert report(shapes=NAMED).title.startswith("2 tables, 1,050 rows, 65,600 weights; ")
    made = report()
    made.device = "cuda"
    assert made.title.endswith("on a GPU")


def test_everything_survives_json():
    plain = json.loads(json.dumps(report(shapes=NAMED).plain()))
    assert [kind["kind"] for kind in plain["kinds"]] == ["fp32", "fp16", "int8", "char", "packed"]
    assert plain["kinds"][0]["measured"] == plain["kinds"][0]["computed"]
    assert plain["kinds"][1]["measured"] is None
    assert plain["kinds"][1]["not_measured"] == "needs 9 GB, and 1 GB may be used"
    assert [t["table"] for t in plain["kinds"][4]["tables"]] == [1000 * 8, 50 * 4]
    assert plain["tables"][1] == {"name": "<b>&item", "rows": 50, "dim": 32, "bytes_in_file": 6400}
    assert plain["machine"]["cores"] >= 1


def test_a_machine_is_named_only_where_something_was_measured_on_it():
    assert report(measured=()).plain()["machine"] is None
    assert set(machine("cpu")) == {"processor", "cores", "torch"}


def rows_of(made):
    return list(csv.DictReader(io.StringIO(csv_text(made))))


def test_csv_has_a_row_a_kind():
    rows = rows_of(report())
    assert [row["kind"] for row in rows] == ["fp32", "fp16", "int8", "char", "packed"]
    assert rows[0]["computed_table_bytes"] == rows[0]["measured_table_bytes"] == "256000"
    assert (rows[0]["rows"], rows[0]["dim"]) == ("1000", "64")
    assert rows[1]["measured_table_bytes"] == ""
    assert rows[1]["not_measured"].startswith("needs 9 GB")


def test_csv_has_a_row_a_table_and_kind_and_one_of_all():
    rows = rows_of(report(shapes=NAMED, keys=("fp32", "packed")))
    assert [(row["table"], row["dim"], row["computed_table_bytes"]) for row in rows] == [
        ("user.weight", "64", "256000"),
        ("<b>&item", "32", "6400"),
        ("*", "", "262400"),
        ("user.weight", "64", "8000"),
        ("<b>&item", "32", "200"),
        ("*", "", "8200"),
    ]
