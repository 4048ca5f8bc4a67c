"""``packedbag plan``: its answer in words, as a table and as JSON, and its exit codes."""

import json

import pytest

from tests.cli.command import run
from tests.cli.test_compare import called

pytest.importorskip("typer")
pytest.importorskip("rich")

BILLION = ("plan", "--rows", "1e9", "--dim", "64", "--reserve", "0")


def test_what_fits_is_said_in_the_first_line(monkeypatch, capsys):
    code, out, err = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", "--gpus", 8, "--bits", 4)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "fits: 1,000,000,000 rows x 64 over 8 GPUs with 4 bits in training (4.5 GB of 24 GB on each)"
    )


def test_what_does_not_fit_comes_with_what_would(monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", "--bits", 4)
    assert code == 0
    assert out.splitlines()[0] == (
        "does not fit: 1,000,000,000 rows x 64 with 4 bits in training; a training step needs 36 GB, 24 GB are there. "
        "It would with 2 bits, with D = 32, with 666M rows or over 2 GPUs"
    )


def test_a_table_of_80_columns_has_a_row_for_each_number_of_bits(monkeypatch, capsys):
    _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB")
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= 80
    rows = [line.replace("│", " ").split() for line in lines]
    assert [row[0] for row in rows] == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert rows[6] == ["2", "20", "GB", "20", "GB", "83%", "yes", "64", "1.19B", "1"]
    assert rows[0] == ["8", "68", "GB", "68", "GB", "283%", "no", "-", "352M", "3"]
    assert "serving, one bit a weight: 8 GB, fits." in out
    assert "fp32, row-wise Adagrad 260 GB" in out


def test_without_bits_the_most_that_fit_are_named(monkeypatch, capsys):
    _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", "-q")
    assert out == "fits: 1,000,000,000 rows x 64 with 2 bits in training, the most that fit (20 GB of 24 GB)\n"


def test_a_tenth_of_the_memory_is_kept_free(monkeypatch, capsys):
    _, out, _ = called(monkeypatch, capsys, "plan", "--rows", "1M", "--dim", "64", "--memory", "10GB", "--json")
    assert json.loads(out)["budget"] == 9 * 10**9


def test_without_a_word_a_row_less_is_needed(monkeypatch, capsys):
    needs = {}
    for adaptivity in ("ema", "none"):
        _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "1TB", "--adaptivity", adaptivity, "--json")
        needs[adaptivity] = json.loads(out)["training"][0]["costs"]["peak"]
    assert needs["ema"] - needs["none"] == 4 * 10**9


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--memory", "24GB"), 0),
        (("--memory", "24GB", "--bits", 4), 0),
        (("--memory", "24GB", "--bits", 4, "--strict"), 3),
        (("--memory", "24GB", "--bits", 2, "--strict"), 0),
        (("--memory", "1GB"), 3),
        (("--memory", "1GB", "--json"), 3),
        (("--memory", "1GB", "--gpus", 100), 0),
    ],
)
def test_the_exit_code_is_3_where_nothing_fits(monkeypatch, capsys, arguments, code):
    assert called(monkeypatch, capsys, *BILLION, *arguments)[0] == code


def test_what_fits_for_serving_alone_is_said(monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "plan", "--rows", "10", "--dim", 64, "--memory", "1MB", "-q")
    assert code == 3
    assert out.endswith("needs more than 900 kB; it fits for serving alone\n")


def test_json_goes_to_a_file_beside_the_words(monkeypatch, capsys, tmp_path):
    _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", "-q", "--json", tmp_path / "p.json")
    assert out.startswith("fits: ")
    assert json.loads((tmp_path / "p.json").read_text())["fits"]
    assert len(list(tmp_path.iterdir())) == 1


def rank_table(out):
    """Return the second table's rows, by name."""
    lines = out[out.index(" ranks, by ") :].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    return {name: (packed, floats) for name, packed, floats in rows}


def test_what_a_rank_holds_and_sends_is_said_beside_fp32(monkeypatch, capsys):
    asked = (*BILLION, "--memory", "24GB", "--ranks", 8, "--bits", 4, "--batch", 8000, "--bag", 20)
    code, out, err = called(monkeypatch, capsys, *asked)
    assert (code, err) == (0, "")
    assert "each of 8 ranks, by row" in out
    assert rank_table(out) == {
        "table": ("1 GB", "32 GB"),
        "planes": ("3 GB", "-"),
        "row state": ("500 MB", "500 MB"),
        "held": ("4.5 GB", "32.5 GB"),
        # 7000 bags of the other ranks: their lengths, and an eighth of their ids; int32 or int64.
        "indices, in a step": ("98 kB", "168 kB"),
        "forward": ("448 kB", "1.79 MB"),
        "gradients": ("1.79 MB", "1.79 MB"),
        "row statistics": ("-", "-"),
        "on the wire": ("2.34 MB", "3.75 MB"),
    }


def test_gpus_are_ranks(monkeypatch, capsys):
    plain = []
    for name in ("--gpus", "--ranks"):
        _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", name, 8, "--json")
        plain.append(json.loads(out))
    assert plain[0] == plain[1]
    assert plain[0]["gpus"] == 8


@pytest.mark.parametrize(
    ("sharding", "shape", "first"),
    [
        ("row", [125_000_000, 64], "over 8 GPUs with 2 bits in training (2.5 GB of 24 GB on each)"),
        ("column", [10**9, 32], "over 8 GPUs by column with 2 bits in training (12 GB of 24 GB on each)"),
        ("table", [10**9, 64], "on one of 8 GPUs with 2 bits in training (20 GB of 24 GB)"),
    ],
)
def test_the_largest_part_is_planned_for(monkeypatch, capsys, sharding, shape, first):
    asked = (*BILLION, "--memory", "24GB", "--ranks", 8, "--bits", 2, "--sharding", sharding)
    _, out, _ = called(monkeypatch, capsys, *asked, "-q")
    assert out == f"fits: 1,000,000,000 rows x 64 {first}\n"
    _, out, _ = called(monkeypatch, capsys, *asked, "--json")
    found = json.loads(out)
    assert (found["sharding"], [found["shard_rows"], found["shard_dim"]]) == (sharding, shape)
    option = found["training"][6]
    assert option["planes"] == option["costs"]["table"] == shape[0] * shape[1] // 8
    assert option["row_state"] == 4 * shape[0]
    assert option["costs"]["state"] == option["planes"] + option["row_state"] + 64
    assert found["fp32"] == {"table": 4 * shape[0] * shape[1], "row_state": 4 * shape[0]}


def test_json_holds_what_is_on_the_wire(monkeypatch, capsys):
    asked = (*BILLION, "--memory", "24GB", "--ranks", 4, "--batch", 400, "--bag", 3, "--json")
    wire = {}
    for sharding in ("table", "row", "column"):
        _, out, _ = called(monkeypatch, capsys, *asked, "--sharding", sharding)
        wire[sharding] = json.loads(out)["wire"]
    # 300 bags of 3 ids are of other ranks; counts to 3 take 2 bits.
    assert wire["table"]["packed"] == {
        "indices": 4800,
        "forward": 4800,
        "gradients": 76_800,
        "statistics": 0,
        "total": 86_400,
    }
    assert wire["table"]["fp32"]["indices"] == 8400
    assert wire["table"]["fp32"]["forward"] == wire["table"]["fp32"]["gradients"] == 76_800
    assert wire["row"]["packed"]["indices"] == 300 * 4 + 900 * 4 // 4
    assert wire["row"]["packed"]["forward"] == 4800
    assert wire["column"]["packed"]["forward"] == 2400
    # Nearly all of 1,200 rows occur once, and have the gradients of their bags.
    assert wire["column"]["packed"]["statistics"] == 400 * 132 + 1200 * 4
    assert wire["column"]["fp32"]["statistics"] == 0


def test_more_ranks_do_not_help_a_table_that_lies_on_one(monkeypatch, capsys):
    asked = (*BILLION, "--memory", "24GB", "--ranks", 8, "--bits", 4)
    code, out, _ = called(monkeypatch, capsys, *asked, "--sharding", "table", "-q")
    assert code == 0
    assert out.endswith("It would with 2 bits, with D = 32 or with 666M rows\n")


def test_one_rank_sends_nothing(monkeypatch, capsys):
    _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB", "--json")
    assert json.loads(out)["wire"]["packed"]["total"] == 0
    _, out, _ = called(monkeypatch, capsys, *BILLION, "--memory", "24GB")
    assert " ranks, by " not in out


def test_binary_values_of_four_bits_have_a_row_for_one_and_two_bits(monkeypatch, capsys):
    asked = ("plan", "--rows", "1e9", "--dim", 128, "--reserve", 0, "--memory", "40GB", "--bits-per-value", 4)
    code, out, err = called(monkeypatch, capsys, *asked)
    assert (code, err) == (0, "")
    assert called(monkeypatch, capsys, *asked, "--code", "binary")[1] == out
    lines = out.splitlines()
    assert lines[0] == (
        "fits: 1,000,000,000 rows x 128 (4 bits a value, binary) with 2 bits in training, the most that fit "
        "(36 GB of 40 GB)"
    )
    title = "1,000,000,000 rows x 128 weights, 4 to a value (binary), on one machine or GPU"
    assert title in " ".join(out.split())
    rows = [line.replace("│", " ").split() for line in lines if line.startswith("│")]
    assert [row[:2] for row in rows] == [["2", "36"], ["1", "20"]]
    assert "bits in training: of a weight; the counter of a value has 4 times as many, 8 at most." in out
    assert "in others, fp32 with as many values a row, 32, Char with as many weights: fp32, Adagrad 256 GB;" in out


def test_thermometers_are_told_of_binary_values(monkeypatch, capsys):
    asked = ("plan", "--rows", "1e9", "--dim", 128, "--memory", "24GB", "--bits", 4, "--code", "thermometer")
    _, out, _ = called(monkeypatch, capsys, *asked, "--bits-per-value", 4)
    assert out.startswith(
        "does not fit: 1,000,000,000 rows x 128 (4 bits a value, thermometer) with 4 bits in training;"
    )
    assert "It would with 1 bit, with D = 32, with 317M rows or over 4 GPUs" in out
    assert "as binary values (--code binary), with at most 2 bits in training: 36 GB in a step, does not fit." in out
    assert "binary" not in called(monkeypatch, capsys, *asked)[1]


def test_a_rank_of_values_is_compared_with_as_many_floats(monkeypatch, capsys):
    asked = ("plan", "--rows", "1e9", "--dim", 128, "--memory", "24GB", "--ranks", 8, "--bits-per-value", 4)
    _, out, _ = called(monkeypatch, capsys, *asked)
    assert "packed, 2 bits │ fp32, 32 values a row" in " ".join(out.replace("┃", "│").split())
    assert rank_table(out)["table"] == ("2 GB", "16 GB")
    assert rank_table(out)["planes"] == ("2 GB", "-")


def test_json_says_how_bits_make_values(monkeypatch, capsys):
    asked = ("plan", "--rows", "1000", "--dim", 128, "--memory", "1GB", "--json", "--bits-per-value")
    plain = json.loads(called(monkeypatch, capsys, *asked, 4)[1])
    assert (plain["bits_per_value"], plain["code"], plain["shard_values"]) == (4, "binary", 32)
    assert plain["as_binary"] is None
    plain = json.loads(called(monkeypatch, capsys, *asked, 16)[1])
    assert (plain["bits_per_value"], plain["code"]) == (16, "thermometer")
    plain = json.loads(called(monkeypatch, capsys, *asked, 2, "--code", "thermometer")[1])
    assert plain["as_binary"]["table"] == 16_000


MISTAKES = [
    (("--memory", "24"), "nothing fits", 3),
    (("--memory", "lots"), "--memory is 'lots'; it must be a size such as 24GB", 2),
    (("--memory", "0"), "--reserve is 0 B; it must be less than --memory, 0 B.", 2),
    (("--memory", "1GB", "--bits", 0), "--bits is 0; it must be in 1..8.", 2),
    (("--memory", "1GB", "--bits-per-value", 3), "--bits-per-value is 3; it must be 1, 2, 4, 8, 16 or 32.", 2),
    (
        ("--memory", "1GB", "--bits-per-value", 16, "--code", "binary"),
        "--bits-per-value is 16; it must be 2, 4 or 8 with --code binary. Or pass --code thermometer.",
        2,
    ),
    (("--memory", "1GB", "--code", "binary"), "--bits-per-value is 1; it must be 2, 4 or 8 with --code binary.", 2),
    (("--memory", "1GB", "--code", "gray"), "--code is 'gray'; it must be binary or thermometer.", 2),
    (
        ("--memory", "1GB", "--bits-per-value", 4, "--bits", 4),
        "--bits is 4; it must be in 1..2 with --code binary and --bits-per-value 4. One counter, of 8 bits at most,",
        2,
    ),
    (("--memory", "1GB", "--bits-per-value", 32, "--dim", 48), "--dim is 48; it must be a multiple of", 2),
    (("--memory", "1GB", "--gpus", 0), "--gpus is 0; it must be at least 1.", 2),
    (("--memory", "1GB", "--ranks", 0), "--ranks is 0; it must be at least 1.", 2),
    (("--memory", "1GB", "--ranks", 2, "--gpus", 3), "--gpus is 3; it must be left out beside --ranks 2.", 2),
    (("--memory", "1GB", "--sharding", "cell"), "--sharding is 'cell'; it must be one of table, row, column.", 2),
    (("--memory", "1GB", "--adaptivity", "adam"), "--adaptivity is 'adam'; it must be ema or none.", 2),
    (("--memory", "1GB", "--reserve", "2GB"), "--reserve is 2 GB; it must be less than --memory, 1 GB.", 2),
    (("--memory", "1GB", "--json", "/none/p"), "--json is /none/p; it must be a file in a folder", 2),
]


@pytest.mark.parametrize(("arguments", "message", "code"), MISTAKES)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, message, code):
    found, out, err = called(monkeypatch, capsys, "plan", "--rows", "1e9", "--dim", 64, *arguments)
    assert found == code
    assert message in out + err
    assert err.count("\n") == (1 if code == 2 else 0)


def test_help_shows_examples_and_exit_codes():
    code, out, _ = run("plan", "--help")
    assert code == 0
    assert "packedbag plan --rows 1e9 --dim 64 --bits 4 --memory 24GB --gpus 8" in out
    assert "3 nothing fits" in out
