"""``packedbag convert``: what it writes and prints, and says of mistakes."""

import io
import json
import os
import signal

import numpy as np
import pytest
import torch

from packedbag import PackedTable
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


SAID = [
    ({"bits_per_value": 4, "code": "binary"}, "bits_per_value=4, code='binary'"),
    ({"bits_per_value": 2}, "bits_per_value=2, code='thermometer'"),
    ({"mode": "mean", "padding_idx": 3}, "mode='mean', padding_idx=3"),
    (
        {"mode": "mean", "bits_per_value": 8, "code": "binary"},
        "mode='mean', bits_per_value=8, code='binary'",
    ),
    ({"mode": "sum"}, None),  # what a reader takes it for
    ({}, None),
]


@pytest.mark.parametrize("form", ["bool", "qweight", "words"])
@pytest.mark.parametrize(("said", "shown"), SAID, ids=[str(said) for said, _ in SAID])
def test_what_a_checkpoint_has_no_place_for_is_named(tmp_path, monkeypatch, capsys, form, said, shown):
    monkeypatch.chdir(tmp_path)
    metadata = {name: said[name] for name in ("mode", "padding_idx") if name in said}
    values = {name: said[name] for name in ("bits_per_value", "code") if name in said}
    made = PackedTable(np.arange(20, dtype=np.uint32).reshape(10, 2), 64, metadata=metadata, **values)
    safetensors_tables.save("new.safetensors", {"item.": made})
    code, out, err = called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--form", form)
    assert code == 0
    assert err == ("" if shown is None else f"note: item: TARGET has no place for {shown}: SOURCE alone says so.\n")
    weight = torch.load("back.pt", weights_only=True)["item.qweight" if form == "qweight" else "item.weight"]
    assert weight.shape == (10, {"bool": 64, "qweight": 8, "words": 2}[form])  # bits, not values
    _, out, _ = called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--json")
    assert json.loads(out)["unsaid"] == ({} if shown is None else {"item.": said | _values(made)})
    assert called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt", "--quiet") == (0, "", "")


def _values(made):
    return {} if made.bits_per_value == 1 else {"bits_per_value": made.bits_per_value, "code": made.code}


def test_of_many_tables_the_first_eight_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = PackedTable(np.zeros((2, 1), np.uint32), 32, metadata={"mode": "mean"})
    safetensors_tables.save("new.safetensors", {f"t{i}.": made for i in range(11)})
    _, _, err = called(monkeypatch, capsys, "convert", "new.safetensors", "back.pt")
    assert len(err.splitlines()) == 9
    assert err.endswith("note: the same for 3 more tables.\n")


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
