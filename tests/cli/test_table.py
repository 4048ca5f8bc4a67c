"""`packedbag.cli.table` and `packedbag.report.comparison`."""

import json
from dataclasses import replace

from rich.console import Console

from packedbag.cli.table import explain, render
from packedbag.recsys.settings import Settings
from packedbag.report.comparison import Comparison, Line


def comparison(measured=True, compared=True):
    peak = (3_000_000, 70_000_000) if measured else (None, None)
    lines = [
        Line("packed", 0.7845, 0.5549, 32_500, 244_000, *peak),
        Line("char", None, None, 260_000, 1_040_000, *peak),
        Line("fp32", *((0.7844, 0.5717) if compared else (None, None)), 1_040_000, 1_040_000, *peak),
    ]
    return Comparison(
        dataset="movielens-100k",
        embedding_dim=64,
        tables={"user": 1000, "item": 3063},
        rows={"train": 80, "valid": 10, "test": 10_047},
        settings=Settings().plain(),
        lines=lines,
    )


def shown(comparison):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render(comparison))
    return capture.get()


def test_the_table_fits_80_columns_and_shows_every_number():
    text = shown(comparison())
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split()[1]: line.replace("│", " ").split() for line in text.splitlines() if line.startswith("│")}
    assert rows["packed"] == ["packed", "1", "0.7845", "0.5549", "32.5", "kB", "244", "kB", "3", "MB", "70", "MB"]
    assert rows["Char"] == ["Char", "8", "-", "-", "260", "kB", "1.04", "MB", "3", "MB", "70", "MB"]
    assert rows["fp32"] == ["fp32", "32", "0.7844", "0.5717", "1.04", "MB", "1.04", "MB", "3", "MB", "70", "MB"]
    assert "movielens-100k: 2 tables, 4,063 rows x 64 weights; 10,047 test rows" in text


def test_what_was_not_measured_has_no_column_and_no_explanation():
    assert "peak" not in shown(comparison(measured=False))
    assert "peak" not in explain(comparison(measured=False))
    assert "`packedbag compare` measures what a training step takes" in explain(comparison(measured=False))
    assert "batch of 512" in explain(comparison())


def test_how_bits_make_values_is_said():
    binary = comparison()
    thermometer = replace(binary, settings=Settings(code="thermometer").plain())
    single = replace(binary, settings=Settings(bits_per_value=1, code="thermometer").plain())
    assert "packed: 4 bits make a value, a binary number of them: the perceptron sees 16 a row." in explain(binary)
    assert "packed: 4 bits make a value, their mean: the perceptron sees 16 a row." in explain(thermometer)
    assert "packed:" not in explain(single)


def test_what_was_not_trained_is_said():
    assert "fp32: not trained; --compare trains it." in explain(comparison(compared=False))
    assert "fp32: not trained" not in explain(comparison())
    assert "Char: torch's bool, 8 bits a weight; not trained, but its step is built and taken" in explain(comparison())
    assert "not trained, but its bytes are computed." in explain(comparison(measured=False))


def test_rows_never_updated_are_counted_where_there_are_any():
    made = comparison()
    assert "never updated" not in explain(made)
    made.lines[0].untouched_rows = 0
    assert "never updated" not in explain(made)
    made.lines[0].untouched_rows = 1016
    assert "1,016 of 4,063 packed rows were never updated: they keep the random bits they began with." in explain(made)


def test_the_numbers_survive_json():
    plain = json.loads(json.dumps(comparison().plain()))
    assert plain["lines"][0]["table_bytes"] == 32_500
    assert plain["lines"][1]["auc"] is None
    assert plain["settings"]["hidden"] == [128, 64]
