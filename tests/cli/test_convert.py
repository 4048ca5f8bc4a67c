"""``packedbag convert``: what it writes and prints, and says of mistakes."""

import io
import json
import os
import signal

import numpy as np
import pytest
import torch

from packedbag import PackedEmbeddingBag, PackedTable
from packedbag.cli import converting_bar
from packedbag.io import safetensors_tables
from tests.cli.command import run
from tests.cli.test_compare import called

pytest.importorskip("typer")
pytest.importorskip("rich")

STATE = {
    "user.weight": torch.rand(300, 40) > 0.5,
    "item.qweight": torch.randint(0, 256, (20, 5), dtype=torch.uint8),
    "item.scale_w": torch.rand(20, 1),
    "linear.weight": torch.rand(2, 3),
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A checkpoint in the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "epoch": 3}, "old.pt")
    return tmp_path / "old.pt"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("old")
def test_a_checkpoint_is_packed_and_unpacked_and_each_table_has_a_row(monkeypatch, capsys):
    code, out, err = called(monkeypatch, capsys, "convert", "old.pt", "new.safetensors")
    assert code == 0
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == ["user", "300", "40", "bool", "12", "kB", "2.4", "kB"]
    assert rows[1] == ["item", "20", "40", "qweight", "180", "B", "240", "B"]
    assert out.splitlines()[-1].startswith("old.pt (")
    assert out.endswith("): 2 tables; 1 other tensor copied\n")
    assert err.splitlines() == [
        "note: item: D is taken as 40, all bits of a row: SOURCE does not say it. Else pass --embedding-dim.",
        "note: left out, no tensors of the model: epoch.",
    ]
    code, out, err = called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt")
    assert (code, err) == (0, "")
    back = torch.load("back.pt", weights_only=True)
    assert set(back) == set(STATE)
    assert all(torch.equal(back[name], STATE[name]) for name in STATE)


def test_form_and_embedding_dim_are_passed_on(old, monkeypatch, capsys):
    arguments = ("convert", old, "new.safetensors", "--embedding-dim", 37)
    assert called(monkeypatch, capsys, *arguments)[0] == 0
    assert safetensors_tables.read("new.safetensors").tables["item."].embedding_dim == 37
    assert called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--form", "bool")[0] == 0
    back = torch.load("back.pt", weights_only=True)
    assert (back["item.weight"].dtype, back["item.weight"].shape) == (torch.bool, (20, 37))


def test_quiet_prints_nothing(old, monkeypatch, capsys):
    assert called(monkeypatch, capsys, "convert", old, "new.safetensors", "--quiet") == (0, "", "")
    assert called(monkeypatch, capsys, "convert", "new.safetensors", "back.pth", "-q") == (0, "", "")


def test_json_has_all_that_is_printed(old, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "convert", "old.pt", "new.safetensors", "--json")
    printed = json.loads(out)
    assert code == 0
    assert (printed["source"], printed["target"], printed["others"]) == ("old.pt", "new.safetensors", ["linear.weight"])
    assert (printed["left_out"], printed["assumed"], printed["binarized"]) == (["epoch"], {"item.": 40}, [])
    expected = {"name": "user.", "rows": 300, "dim": 40, "form": "bool", "nbytes": 12000, "packed_bytes": 2400}
    assert printed["tables"][0] == expected
    assert printed["source_bytes"] == old.stat().st_size
    _, out, _ = called(monkeypatch, capsys, "convert", "old.pt", "new.safetensors", "--json", "c.json")
    assert "2 tables" in out
    with open("c.json") as file:  # noqa: PTH123 - in the working folder
        assert json.load(file) == printed


VALUES = [
    {"bits_per_value": 1, "code": "thermometer"},
    {"bits_per_value": 4, "code": "thermometer"},
    *({"bits_per_value": bits, "code": "binary"} for bits in (2, 4, 8)),
]


def saved(metadata, values, scale=None):
    """Write a packed file of one table, of 40 columns, into the working folder, and return the table."""
    words = np.random.default_rng(0).integers(0, 2**32, (10, 2), np.uint32) & np.uint32([2**32 - 1, 2**8 - 1])
    made = PackedTable(words, 40, scale, metadata, **values)
    safetensors_tables.save("new.safetensors", {"item.": made}, {"linear.weight": np.ones((2, 3), np.float32)})
    return made


@pytest.mark.parametrize("form", ["bool", "qweight", "words"])
@pytest.mark.parametrize("values", VALUES, ids=lambda values: "-".join(map(str, values.values())))
@pytest.mark.parametrize("metadata", [{}, {"mode": "mean", "padding_idx": 3}])
def test_a_packed_file_survives_a_checkpoint_of_every_form(tmp_path, monkeypatch, capsys, form, values, metadata):
    monkeypatch.chdir(tmp_path)
    made = saved(metadata, values, np.float32(0.5))
    assert called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--form", form, "-q") == (0, "", "")
    state = torch.load("back.pt", weights_only=True)
    weight = state["item.qweight" if form == "qweight" else "item.weight"]
    assert weight.shape == (10, {"bool": 40, "qweight": 5, "words": 2}[form])  # bits, not values
    assert set(state) == {"linear.weight", "item.weight", "item.scale"} or form == "qweight"
    assert called(monkeypatch, capsys, "convert", "back.pt", "again.safetensors")[::2] == (0, "")
    (found,) = safetensors_tables.read("again.safetensors").tables.values()
    assert (found.embedding_dim, found.bits_per_value, found.code) == (40, *values.values())
    assert found.metadata == metadata | {"form": form}
    assert found.scale_kind == ("row" if form == "qweight" and values["code"] == "thermometer" else "table")
    indices = np.array([[3, 4, 7], [0, 9, 9]])
    np.testing.assert_array_equal(found.load().bag(indices, mode="sum"), made.bag(indices, mode="sum"))
    np.testing.assert_array_equal(found.load().words, made.words)


def test_what_a_state_dict_says_is_in_the_metadata_that_torch_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved({"mode": "mean"}, {"bits_per_value": 4, "code": "binary"})
    called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--form", "words")
    state = torch.load("back.pt", weights_only=True)
    said = {"version": 2, "embedding_dim": 40, "bits_per_value": 4, "code": "binary", "metadata": {"mode": "mean"}}
    assert json.loads(state._metadata["item"]["packedbag"]) == said
    module = torch.nn.ModuleDict({"item": PackedEmbeddingBag(10, 40, bits_per_value=4, code="binary")})
    module["linear"] = torch.nn.Linear(3, 2, bias=False)
    module.load_state_dict(state)


def test_values_of_a_checkpoint_that_does_not_say_them_are_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = PackedEmbeddingBag(10, 64, bits_per_value=4, code="binary")
    torch.save({"item.weight": module.state_dict()["weight"]}, "t.pt")
    assert called(monkeypatch, capsys, "convert", "t.pt", "n.safetensors")[0] == 0
    assert safetensors_tables.read("n.safetensors").tables["item."].bits_per_value == 1
    arguments = ("convert", "t.pt", "n.safetensors", "--bits-per-value", 4)
    code, _, err = called(monkeypatch, capsys, *arguments)
    assert (code, err[:67]) == (2, "error: code is None; it must be 'binary' or 'thermometer' with bits")
    assert called(monkeypatch, capsys, *arguments, "--code", "binary")[0] == 0
    (found,) = safetensors_tables.read("n.safetensors").tables.values()
    assert (found.bits_per_value, found.code) == (4, "binary")
    np.testing.assert_array_equal(found.load().rows(np.arange(10)), module(torch.arange(10)[:, None]).detach())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_dim": 100}, "says that 'item.weight' has 100 columns; it has 40. It was changed since: save it"),
        ({"metadata": {"mode": "median"}}, "table 'item.': mode is 'median'"),
        ({"metadata": {"padding_idx": 10}}, "table 'item.': padding_idx is 10"),
        ({"bits_per_value": 3}, "what it says of table 'item' is no table: bits_per_value is 3"),
    ],
)
def test_a_checkpoint_that_says_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys, changed, message):
    monkeypatch.chdir(tmp_path)
    saved({}, {"bits_per_value": 4, "code": "binary"})
    called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt")
    state = torch.load("back.pt", weights_only=True)
    said = json.loads(state._metadata["item"]["packedbag"]) | changed
    state._metadata["item"]["packedbag"] = json.dumps(said)
    torch.save(state, "back.pt")
    code, _, err = called(monkeypatch, capsys, "convert", "back.pt", "new.safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: back.pt: {message}")


MISTAKES = [
    (("none.pt", "new.safetensors"), "error: none.pt: cannot be read (No such file or directory)."),
    (("text.pt", "new.safetensors"), "error: text.pt: is no checkpoint of torch.save: it begins with other bytes."),
    (("cut.pt", "new.safetensors"), "error: cut.pt: is not a whole checkpoint of torch.save: it is no whole zip file"),
    (("text.safetensors", "new.pt"), "error: text.safetensors: is not a whole safetensors file"),
    (("dense.pt", "new.safetensors"), "error: dense.pt: holds no binary table, but a (F32 2 x 2). A table is a bool"),
    (
        ("old.pt", "new.txt"),
        "error: target is new.txt; it must be a file that ends in .safetensors (packed), or in",
    ),
    (
        ("old.pt", "no/new.safetensors"),
        "error: TARGET is no/new.safetensors; it must be a file in a folder that",
    ),
    (("old.pt", "folder.pt"), "error: TARGET is folder.pt; it must be a file in a folder that exists"),
    (("old.pt", "new.safetensors", "--form", "bool"), "error: form is 'bool'; it must be left out where the target"),
    (("old.pt", "new.pt"), "error: source is old.pt; it must be a packed .safetensors file"),
    (("old.pt", "new.safetensors", "--embedding-dim", 7), "error: embedding_dim is 7; it must be the D of a table"),
    (("old.pt", "new.safetensors", "--embedding-dim", 0), "error: embedding_dim is 0; it must be in 1..524288."),
    (
        ("old.pt", "new.safetensors", "--bits-per-value", 3, "--code", "binary"),
        "error: bits_per_value is 3; it must be 1, 2, 4, 8, 16 or 32.",
    ),
    (("old.pt", "new.safetensors", "--code", "binary"), "error: code is 'binary'; it must be left out without"),
    (
        ("old.pt", "new.safetensors", "--bits-per-value", 16),
        "error: old.pt: table 'user.': embedding_dim is 40; it must be a multiple of bits_per_value=16.",
    ),
    (("old.pt", "new.safetensors", "--json", "no/c.json"), "error: --json is no/c.json; it must be a file in a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(map(str, made)) for made, _ in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(old, monkeypatch, capsys, arguments, message):
    folder = old.parent
    (folder / "text.pt").write_text("This is no checkpoint.")
    (folder / "text.safetensors").write_text("This is no packed file.")
    (folder / "cut.pt").write_bytes(old.read_bytes()[:-10])
    torch.save({"a": torch.ones(2, 2)}, folder / "dense.pt")
    (folder / "folder.pt").mkdir()
    (folder / "new.safetensors").write_bytes(b"old")
    before = files(folder)
    code, out, err = called(monkeypatch, capsys, "convert", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert files(folder) == before
    assert (folder / "new.safetensors").read_bytes() == b"old"


def test_control_codes_in_names_do_not_reach_the_terminal(old, monkeypatch, capsys):
    torch.save({"\x1b[31mred.weight": torch.ones(2, 2, dtype=torch.bool), "[bold]x.weight": STATE["user.weight"]}, old)
    code, out, _ = called(monkeypatch, capsys, "convert", old, "new.safetensors")
    assert code == 0
    assert "\x1b" not in out
    assert r"\x1b[31mred" in out
    assert "[bold]x" in out


def test_a_full_disk_is_one_line_and_leaves_the_old_file(old, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (old.parent / "new.safetensors").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    code, out, err = called(monkeypatch, capsys, "convert", "old.pt", "new.safetensors")
    assert (code, out, err) == (1, "", "error: input or output: No space left on device\n")
    assert (old.parent / "new.safetensors").read_bytes() == b"old"
    assert files(old.parent) == ["new.safetensors", "old.pt"]


@pytest.mark.parametrize(("source", "target"), [("old.pt", "new.safetensors"), ("packed.safetensors", "new.pt")])
def test_ctrl_c_leaves_the_old_file_and_no_half_one(old, monkeypatch, capsys, source, target):
    assert called(monkeypatch, capsys, "convert", "old.pt", "packed.safetensors")[0] == 0
    seen = []

    def interrupt(bar, done, total):
        if done == total:  # the last tensor has begun, so the new file has too
            seen.extend(files(old.parent))
            os.kill(os.getpid(), signal.SIGINT)

    (old.parent / target).write_bytes(b"old")
    before = files(old.parent)
    monkeypatch.setattr(converting_bar.ConvertingBar, "show", interrupt)
    code, out, err = called(monkeypatch, capsys, "convert", source, target)
    assert (code, out, err) == (130, "", "error: interrupted\n")
    assert [name for name in seen if name.startswith(f".{target}.")]
    assert files(old.parent) == before
    assert (old.parent / target).read_bytes() == b"old"


def test_help_shows_examples_and_exit_codes():
    code, out, _ = run("convert", "--help")
    assert code == 0
    assert "packedbag convert old.pt new.safetensors" in out
    assert "130 stopped by Ctrl-C" in " ".join(out.split())


@pytest.mark.parametrize(
    ("patience", "terminal", "quiet", "shown"),
    [(-1, True, False, True), (60, True, False, False), (-1, False, False, False), (-1, True, True, False)],
    ids=["after a second", "before", "piped", "quiet"],
)
def test_a_bar_with_rate_and_time_left_is_shown_when_it_takes_longer(monkeypatch, patience, terminal, quiet, shown):
    from rich.console import Console

    monkeypatch.setattr(converting_bar, "PATIENCE", patience)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with converting_bar.ConvertingBar(console, quiet=quiet) as bar:
        for done in range(0, 101, 10):
            bar.show(done * 1_000_000, 100_000_000)
    text = stream.getvalue()
    assert ("converting" in text) == shown
    assert ("0:00:" in text or "-:--:--" in text) == shown
    assert bool(text) == shown
