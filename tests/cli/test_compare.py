"""``packedbag compare``: what it prints and writes, and says of mistakes."""

import csv
import importlib.util
import io
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from packedbag.cli.app import main
from tests.cli.command import run, start

pytest.importorskip("typer")
pytest.importorskip("rich")

COMPUTED = ("compare", "--rows", "10_000", "--dim", "64", "--measure", "none")


def called(monkeypatch, capsys, *arguments):
    """Call the command in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["packedbag", *map(str, arguments)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() would leave it set in this process
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two small kinds, really measured, with every output."""
    folder = tmp_path_factory.mktemp("compare")
    files = [f"--{ending}={folder / f'o.{ending}'}" for ending in ("json", "csv", "html")]
    plots = ("--plot", folder / "o.png") if _has_matplotlib() else ()
    arguments = ("--rows", "20k", "--dim", 64, "--batch", 64, "--bag", 5, "--only", "packed, char", *files, *plots)
    code, out, err = run("compare", *arguments, COLUMNS="80")
    assert code == 0, err
    return folder, out, err


def _has_matplotlib():
    return importlib.util.find_spec("matplotlib") is not None


def test_a_table_of_80_columns_shows_what_was_computed_and_what_was_measured(finished):
    _, out, _ = finished
    lines = out.splitlines()
    assert lines[0].startswith("20,000 rows x 64 weights; a batch of 64 bags of 5 ids, on the CPU")
    shown = [line.split() for line in lines]
    assert ["Char", "(bool)", "computed", "1.28", "MB", "1.28", "MB", "5.12", "MB"] in [cells[:9] for cells in shown]
    assert ["averaged", "votes", "measured", "1.28", "MB", "1.28", "MB", "5.12", "MB"] in [cells[:9] for cells in shown]
    assert ["CounterSGD", "measured", "160", "kB", "21.8", "kB", "1.2", "MB"] in [cells[:8] for cells in shown]
    assert max(map(len, lines[: lines.index("")])) <= 80


def test_when_piped_there_is_no_bar_and_no_colour(finished):
    folder, out, err = finished
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert [line for line in err.splitlines() if not line.startswith(f"written: {folder}")] == []


def test_every_output_is_written_whole_and_nothing_else(finished):
    folder, _, _ = finished
    names = {"o.json", "o.csv", "o.html"} | ({"o.png"} if _has_matplotlib() else set())
    assert {path.name for path in folder.iterdir()} == names
    made = json.loads((folder / "o.json").read_text())
    assert [kind["kind"] for kind in made["kinds"]] == ["char", "packed"]
    for kind in made["kinds"]:
        assert kind["measured"]["table"] == kind["computed"]["table"]
        assert kind["measured"]["peak"] > 0
    rows = list(csv.DictReader(io.StringIO((folder / "o.csv").read_text())))
    assert [row["measured_table_bytes"] for row in rows] == ["1280000", "160000"]
    assert "</html>" in (folder / "o.html").read_text()


def test_what_is_only_computed_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a child was started"))
    code, out, err = called(monkeypatch, capsys, *COMPUTED, "--optimizer", "adam", "--bits", 2)
    assert (code, err) == (0, "")
    for shown in (
        "SparseAdam",
        "packed, k = 2",
        "row-wise Adagrad",
        "averaged votes",
        "Times packed, k = 2, table and",
    ):
        assert shown in out
    assert "measured  " not in out


def test_a_kind_that_does_not_fit_is_computed_and_marked(monkeypatch, capsys):
    arguments = ("compare", "--rows", "1e9", "--dim", "64", "--memory", "1GB")
    code, out, _ = called(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "fp32 was not measured: needs 512 GB, and 1 GB may be used." in out
    assert [line.split()[-5:] for line in out.splitlines() if "CounterSGD" in line] == [["-"] * 5]


def test_json_alone_goes_to_stdout_and_nothing_else_does(monkeypatch, capsys):
    for arguments in (("--json",), ("--json", "-"), ("--json", "--only", "packed")):
        code, out, _ = called(monkeypatch, capsys, *COMPUTED, *arguments)
        assert code == 0
        made = json.loads(out)
        assert made["kinds"][-1]["computed"]["table"] == 80_000
        assert made["kinds"][-1]["measured"] is None


def test_csv_alone_goes_to_stdout(monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, *COMPUTED, "--csv")
    assert code == 0
    assert [row["kind"] for row in csv.DictReader(io.StringIO(out))] == ["fp32", "fp16", "int8", "char", "packed"]


def test_quiet_says_nothing_but_the_result(monkeypatch, capsys, tmp_path):
    code, out, err = called(monkeypatch, capsys, *COMPUTED, "-q", "--html", tmp_path / "o.html")
    assert (code, err) == (0, "")
    assert out.startswith("10,000 rows x 64 weights")


# Models --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = nn.Module()
    made.user_emb = nn.EmbeddingBag(2000, 64)
    made.item_emb = nn.Embedding(500, 32)
    made.fc = nn.Linear(96, 1)
    path = tmp_path_factory.mktemp("model") / "checkpoint.pt"
    torch.save({"model": made.state_dict(), "epoch": 1}, path)
    return path


def test_a_model_is_compared_table_by_table_and_in_sum(monkeypatch, capsys, checkpoint):
    code, out, err = called(monkeypatch, capsys, "compare", "--model", checkpoint, "--measure", "none")
    assert code == 0
    shown = [line.split() for line in out.splitlines()]
    assert ["user_emb", "2,000", "x", "64", "512", "kB", "512", "kB", "256", "kB"] in [cells[:10] for cells in shown]
    assert ["packed,", "k", "=", "8", "computed", "18", "kB"] in [cells[:7] for cells in shown]
    assert "2 tables, 2,500 rows, 144,000 weights" in out
    assert f"{checkpoint}: 2 tables, 576 kB in the file" in err
    assert "not taken for tables: fc.weight (1 x 96); --table NAME takes one" in err


def test_a_table_of_a_model_is_picked_by_name(monkeypatch, capsys, checkpoint):
    arguments = ("--table", "item_emb.weight", "--measure", "none", "--json")
    code, out, err = called(monkeypatch, capsys, "compare", "--model", checkpoint, *arguments)
    assert code == 0
    assert json.loads(out)["tables"] == [{"name": "item_emb.weight", "rows": 500, "dim": 32, "bytes_in_file": 64_000}]
    assert "not taken" not in err


def test_of_very_many_tables_the_largest_are_shown(monkeypatch, capsys, tmp_path):
    torch.save({f"emb{i}": torch.zeros(100 + i, 4) for i in range(40)}, tmp_path / "m.pt")
    _, out, _ = called(monkeypatch, capsys, "compare", "--model", tmp_path / "m.pt", "--measure", "none")
    assert "16 smaller ones are left out" in out
    assert "emb39" in out
    assert "emb15 " not in out


# Mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = [
    (("--rows", "ten"), "--rows is 'ten'; it must be a whole number from 1 to 10^15, such as 10_000_000, 1e7 or 10M."),
    (("--dim", "0"), "embedding_dim is 0; it must be in 1..524288."),
    (("--bits", "9"), "--bits is 9; it must be in 1..8."),
    (("--optimizer", "lion"), "--optimizer is 'lion'; it must be one of adagrad, rowwise-adagrad, adam, sgd."),
    (("--only", "fp8"), "--only is 'fp8'; it must be names of fp32, fp16, int8, char, packed, commas between."),
    (("--only", ","), "--only is ','; it must be names of"),
    (("--measure", "some"), "--measure is 'some'; it must be all or none."),
    (("--device", "tpu"), "--device is 'tpu'; it must be cpu or cuda."),
    (("--memory", "much"), "--memory is 'much'; it must be a size such as 24GB"),
    (("--batch", "1M", "--bag", "1000"), "--batch times --bag is 1,000,000,000; it must be at most 100,000,000."),
    (("--table", "x"), "--table is given without --model; it must be left out, or come with --model."),
    (("--model", "none.pt"), "none.pt: there is no such file."),
    (("--model", "none.pt", "--rows", "3"), "--rows is given with --model; it must be left out: the file says it."),
    (("--plot", "a.gif"), "--plot is a.gif; it must be a file that ends in .png, .svg, .pdf."),
    (
        ("--html", "/none/a.html"),
        "--html is /none/a.html; it must be a file in a folder that exists and may be written",
    ),
    (("--json", "."), "--json is .; it must be a file in a folder"),
    (("--json", "--csv"), "--json and --csv is both without a file; it must be one of them, or each with a file."),
    (("--html", "-"), "--html is -; it must be a file."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a child was started"))
    code, out, err = called(monkeypatch, capsys, "compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake_and_computing_for_one_is_not(monkeypatch, capsys):
    code, _, err = called(monkeypatch, capsys, "compare", "--device", "cuda")
    assert code == 2
    assert "--device is 'cuda'; it must be cpu: torch finds no GPU here. --measure none computes for a GPU" in err
    code, out, _ = called(monkeypatch, capsys, *COMPUTED, "--device", "cuda")
    assert code == 0
    assert "on a GPU" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_fails_when_it_is_asked_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    code, out, err = called(monkeypatch, capsys, "compare", "--device", "cuda")
    assert (code, out) == (2, "")
    assert err.startswith("error: a GPU's free memory could not be read: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_gpu_could_not_measure_is_computed_and_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sizes = ("--rows", "1000", "--dim", "64", "--only", "packed", "--memory", "1GB")
    code, out, err = called(monkeypatch, capsys, "compare", *sizes, "--device", "cuda")
    assert (code, err) == (0, "")
    assert "on a GPU" in out
    assert "packed, k = 8 was not measured: " in out
    assert "Traceback" not in out


def test_help_shows_examples_and_exit_codes():
    code, out, _ = run("compare", "--help")
    assert code == 0
    assert "packedbag compare --rows 10_000_000 --dim 128" in out
    assert "130" in out


def children(pid):
    """The processes that ``pid`` started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(number) for number in listed.read_text().split()] if listed.exists() else []


def test_ctrl_c_leaves_no_file_and_no_child(tmp_path):
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    process = start("compare", "--rows", "500k", "--dim", "64", "--html", tmp_path / "o.html", TMPDIR=str(tmp_path))
    deadline = time.monotonic() + 60
    found = []
    while not found and time.monotonic() < deadline and process.poll() is None:
        found = children(process.pid)
        time.sleep(0.01)
    assert found, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{number}").exists() for number in found)
