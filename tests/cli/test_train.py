"""``packedbag train``, in processes of its own: what it prints, writes, and says of mistakes."""

import json
import sys

import numpy as np
import pytest

from packedbag.cli.app import main
from packedbag.io.tables import load
from tests.cli.command import run, start
from tests.recsys.datasets import movielens_files

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

SMALL = ("--epochs", 2, "--embedding-dim", 32, "--hidden", "16", "--batch-size", 64, "--min-count", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run on made-up ratings, with everything on."""
    folder = tmp_path_factory.mktemp("run")
    data = movielens_files.wheel(folder / "ratings.whl", movielens_files.texts(rows=1500))
    arguments = ("--data", data, "--output", folder / "out", "--json", folder / "r.json", "--compare", *SMALL)
    code, out, err = run("train", "movielens-100k", *arguments)
    assert code == 0, err
    return folder, out, err


def test_one_table_ends_the_run_and_it_alone_goes_to_stdout(finished):
    _, out, err = finished
    assert out.count("┏") == 1
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == ["packed", "Char", "fp32"]
    assert "validation AUC" in err


def test_when_piped_progress_is_plain_lines(finished):
    _, _, err = finished
    assert "\x1b" not in err
    assert "\r" not in err
    lines = [line for line in err.splitlines() if "samples/s" in line]
    assert len(lines) == 4
    assert lines[0].startswith("packed  epoch  1/2  loss 0.")
    assert "memory" in lines[0]
    assert [" flips " in line for line in lines] == [True, True, False, False]


def test_each_kind_has_a_log_with_a_line_an_epoch(finished):
    folder, _, err = finished
    for kind in ("packed", "fp32"):
        lines = [json.loads(line) for line in (folder / "out" / kind / "log.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]
        for line in lines:
            assert f"validation AUC {line['valid_auc']:.4f}  log loss {line['valid_log_loss']:.4f}" in err
            assert line["lr"] < 0.001
    tables = [json.loads(line) for line in (folder / "out" / "packed" / "log.jsonl").read_text().splitlines()][1][
        "tables"
    ]
    assert list(tables) == ["user", "item", "age", "gender", "occupation", "genres", "history"]
    # Of the 24 rows of user, 16 are for rare ids, and with --min-count 1 there are none.
    assert tables["user"]["untouched_rows"] == 16
    assert sum(tables["user"]["confidences"]) == 24 * 32 // 4  # a counter a value of four bits


def test_rows_that_were_never_updated_are_counted_below_the_table(finished):
    folder, out, _ = finished
    numbers = json.loads((folder / "r.json").read_text())
    untouched = numbers["lines"][0]["untouched_rows"]
    assert untouched >= 7 * 16
    assert numbers["lines"][2]["untouched_rows"] is None
    assert f"{untouched:,} of {sum(numbers['tables'].values()):,} packed rows were never updated" in out


def test_a_new_run_moves_an_earlier_log_and_one_of_other_epochs_says_how_rates_go_on(tmp_path):
    path = tmp_path / "f"
    path.write_text("".join(f"{row % 5} {row % 7}:1 {row % 11 + 7}:1\n" for row in range(400)))
    arguments = ("--data", path, "--threshold", 2, "--no-memory", "--output", tmp_path / "o", *SMALL)
    folder = tmp_path / "o" / "packed"
    code, _, err = run("train", "libfm", *arguments)
    assert code == 0, err
    first = (folder / "log.jsonl").read_text().splitlines()
    code, _, err = run("train", "libfm", *arguments, "--resume", "--epochs", 3, "--patience", 9)
    assert code == 0, err
    assert "the checkpoint is of a run of 2 epochs; from here on, rates are those of a run of 3." in err
    resumed = (folder / "log.jsonl").read_text()
    assert resumed.splitlines()[:2] == first
    assert len(resumed.splitlines()) == 3
    code, _, err = run("train", "libfm", *arguments)
    assert code == 0, err
    assert f"the log of an earlier run is kept as {folder / 'log.old.jsonl'}" in err
    assert (folder / "log.old.jsonl").read_text() == resumed
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2


def test_curves_go_to_tensorboard_by_kind(tmp_path):
    pytest.importorskip("tensorboard")
    path = tmp_path / "f"
    path.write_text("".join(f"{row % 5} {row % 7}:1 {row % 11 + 7}:1\n" for row in range(400)))
    arguments = ("--data", path, "--threshold", 2, "--no-memory", "-q", "--output", tmp_path / "o", *SMALL)
    code, _, err = run("train", "libfm", *arguments, "--compare", "--tensorboard", tmp_path / "curves")
    assert (code, err) == (0, "")
    for kind in ("packed", "fp32"):
        assert len(list((tmp_path / "curves" / kind).glob("events.out.tfevents.*"))) == 1


def test_the_json_holds_the_numbers_of_the_table(finished):
    folder, _, _ = finished
    numbers = json.loads((folder / "r.json").read_text())
    packed, char, fp32 = numbers["lines"]
    rows = sum(numbers["tables"].values())
    assert [x["kind"] for x in numbers["lines"]] == ["packed", "char", "fp32"]
    assert packed["table_bytes"] * 32 == char["table_bytes"] * 4 == fp32["table_bytes"] == rows * 32 * 4
    assert 0 < packed["auc"] < 1
    assert fp32["log_loss"] > 0
    assert char["auc"] is None
    assert min(x["peak_bytes"] for x in numbers["lines"]) > 0
    large = [x["large_peak_bytes"] for x in numbers["lines"]]
    assert large[0] < large[2] < large[1]
    assert sum(numbers["rows"].values()) == 1500


def test_the_tables_are_exported(finished):
    folder, _, _ = finished
    tables = folder / "out" / "packed" / "tables"
    names = {path.stem for path in tables.glob("*.safetensors")}
    assert names == {"user", "item", "age", "gender", "occupation", "genres", "history"}
    user = load(tables / "user.safetensors")
    assert user.embedding_dim == 32
    assert len((tables / "user.ids.jsonl").read_text().splitlines()) == 8 == user.num_embeddings - 16


def csv(path, rows=1500):
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("clicked,user,tags,at\n")
        for i in range(rows):
            user = rng.integers(0, 12)
            tags = "|".join(f"t{t}" for t in rng.integers(0, 5, rng.integers(0, 4)))
            file.write(f"{int(rng.random() < 0.2 + 0.05 * user)},u{user},{tags},{i // 3}\n")
    return path


def test_a_csv_trains_with_named_columns_and_a_split_by_time(tmp_path):
    data = csv(tmp_path / "clicks.csv")
    columns = ("--label", "clicked", "--categorical", "user", "--bag", "tags", "--bag-separator", "|", "--time", "at")
    arguments = ("--data", data, *columns, "--split", "time", "--no-memory", "--output", tmp_path / "o", *SMALL)
    code, out, err = run("train", "csv", *arguments)
    assert code == 0, err
    assert "csv: 1,200 train, 150 valid, 150 test rows" in err
    assert "tables (rows): user 28, tags 21" in err
    assert "peak" not in out


def test_hashed_libfm_rows_train_quietly(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "f.libfm"
    path.write_text(
        "".join(f"{rng.integers(1, 6)} {rng.integers(9)}:1 {rng.integers(10, 99)}:0.5\n" for _ in range(900))
    )
    arguments = ("--data", path, "--threshold", 4, "--hash-rows", 50, "--no-memory", "--output", tmp_path / "o", *SMALL)
    code, out, err = run("train", "libfm", *arguments, "-q")
    assert (code, err) == (0, "")
    assert "libfm: 1 tables, 50 rows x 32 weights" in out
    code, _, err = run("train", "libfm", *arguments, "--resume")
    assert code == 0, err
    assert "rows are not counted ahead with --hash-rows: rates begin to fall with the second epoch" in err


def test_criteo_lines_train(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "train.txt"
    with path.open("w") as file:
        for _ in range(600):
            numbers = [str(n) if n else "" for n in rng.integers(0, 50, 13)]
            ids = [f"{n:08x}" for n in rng.integers(0, 40, 26)]
            file.write("\t".join([str(rng.integers(0, 2)), *numbers, *ids]) + "\n")
    arguments = ("--data", path, "--no-memory", "--split", "time", "--output", tmp_path / "o", *SMALL)
    code, out, err = run("train", "criteo", *arguments)
    assert code == 0, err
    assert "criteo: 39 tables" in out


MISTAKES = [
    (("train", "movielens"), "DATASET is 'movielens'; it must be one of movielens-100k, csv, libfm, criteo."),
    (("train", "movielens-100k", "--data", "/none"), "/none: cannot be read: No such file or directory."),
    (("train", "movielens-100k", "--label", "y"), "--label is given with movielens-100k; it must be left out; it is"),
    (("train", "movielens-100k", "--threshold", "3"), "it is for csv, libfm."),
    (("train", "movielens-100k", "--split", "user"), "--split is 'user'; it must be one of random, time."),
    (("train", "csv", "--label", "y"), "--data is missing; it must be the path of the csv file."),
    (("train", "csv", "--data", "x"), "--label is missing; it must be the name of the column that holds the label."),
    (("train", "libfm", "--data", "x", "--hidden", "a"), "--hidden is 'a'; it must be whole numbers with commas"),
    (("train", "libfm", "--data", "x", "--epochs", "0"), "epochs is 0; it must be at least 1."),
    (("train", "libfm", "--data", "x", "--checkpoint-steps", "0"), "--checkpoint-steps is 0; it must be at least 1."),
    (("train", "libfm", "--data", "x", "--threads", "0"), "--threads is 0; it must be at least 1."),
    (("train", "libfm", "--data", "x", "--hash-rows", "0"), "hash_rows is 0; it must be in 1..4294967296."),
    (("train", "libfm", "--data", "x", "--json", "/none/r"), "--json is /none/r; it must be a file in a folder that"),
    (("train", "libfm", "--data", "x", "--json", "."), "--json is .; it must be a file in a folder that"),
    (
        ("train", "libfm", "--data", "x", "--threads", "99999999999"),
        "--threads is 99999999999; it must be at most 1024.",
    ),
    (("train", "libfm", "--data", "x", "--threshold", "nan"), "--threshold is nan; it must be a finite number."),
    (("train", "libfm", "--data", "x", "--decay", "-1"), "decay is -1.0; it must be a finite number >= 0."),
    (("train", "libfm", "--data", "x", "--schedule", "step"), "schedule is 'step'; it must be 'cosine' or 'constant'."),
    (("train", "libfm", "--data", "x", "--lr", "nan"), "lr is nan; it must be a finite number >= 0."),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["packedbag", *arguments])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() would leave it set in this process
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    data = csv(tmp_path / "clicks.csv", rows=50)
    with data.open("a") as file:
        file.write("1,u1\n")
    arguments = ("--data", data, "--label", "clicked", "--categorical", "user", "--output", tmp_path / "o")
    code, _, err = run("train", "csv", *arguments)
    assert code == 2
    assert err == f"error: {data}, line 52: has 2 columns where the first line names 4.\n"


def test_tables_larger_than_the_memory_are_a_failure_without_a_traceback(tmp_path):
    data = csv(tmp_path / "clicks.csv", rows=300)
    arguments = ("--data", data, "--label", "clicked", "--categorical", "user", "--output", tmp_path / "o")
    code, _, err = run("train", "csv", "-q", *arguments, "--embedding-dim", 2**19, "--hash-rows", 2**32)
    assert code == 1
    assert err.startswith("error: not enough memory for these tables, layers or batches (")
    assert err.count("\n") == 1


def test_a_run_is_not_resumed_with_another_threshold(tmp_path):
    path = tmp_path / "f"
    path.write_text("".join(f"{row % 5} {row % 7}:1 {row % 11 + 7}:1\n" for row in range(400)))
    arguments = ("--data", path, "--no-memory", "-q", "--output", tmp_path / "o", *SMALL)
    code, _, err = run("train", "libfm", *arguments, "--threshold", 2)
    assert code == 0, err
    code, _, err = run("train", "libfm", *arguments, "--threshold", 3, "--resume")
    assert code == 2
    assert "the checkpoint was made on other data" in err


def test_an_output_that_cannot_be_made_is_a_failure_without_a_traceback(tmp_path):
    data = csv(tmp_path / "clicks.csv", rows=300)
    (tmp_path / "file").write_text("")
    arguments = ("--data", data, "--label", "clicked", "--categorical", "user", "--output", tmp_path / "file" / "o")
    code, _, err = run("train", "csv", "-q", *arguments)
    assert code == 1
    assert err.startswith(f"error: {tmp_path / 'file' / 'o'}")
    assert "Traceback" not in err


def test_a_reader_that_leaves_is_no_error():
    process = start("--help")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
