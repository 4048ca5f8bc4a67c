"""``packedbag export``, ``inspect`` and ``verify``, as a user calls them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packedbag
from packedbag import PackedEmbedding, PackedEmbeddingBag, PackedTable
from tests.cli.command import run, start
from tests.io.tables import assert_equal, table

pytest.importorskip("typer")
pytest.importorskip("rich")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a user, to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "users": PackedEmbedding(1000, 64, scale="row"),
            "movies": PackedEmbeddingBag(300, 100, mode="mean", padding_idx=0, bits_per_value=4),
        }
    )
    model["movies"].words[:, 0] &= ~5  # columns 0 and 2 are -1 everywhere
    model["movies"].words[:, 1] |= 1 << 8  # column 40 is +1
    model["movies"].words[10:20] = model["movies"].words[5]
    packedbag.save(model, "model.safetensors")
    packedbag.save(model["movies"], "movies.pbag")
    torch.save(model.state_dict(), "checkpoint.pt")
    return tmp_path


def answer(*arguments: str) -> dict[str, Any]:
    code, out, err = run(*arguments)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# export ------------------------------------------------------------------------------------------------------------


def test_tables_go_from_one_format_to_another(folder: Path) -> None:
    code, out, err = run("export", "model.safetensors", "--table", "movies", "--to", "m.npy")
    assert (code, err) == (0, "")
    assert out == "m.npy: 4.93 kB, npy: movies (300 x 100)\n"
    assert_equal(packedbag.load("m.npy", "movies"), packedbag.load("movies.pbag"))
    assert run("export", "m.npy", "--to", "back.safetensors", "--quiet") == (0, "", "")
    assert_equal(packedbag.load("back.safetensors"), packedbag.load("movies.pbag"))


def test_a_format_by_name_and_json_alone(folder: Path) -> None:
    found = answer("export", "model.safetensors", "--to", "m.pt", "--format", "int8", "--json")
    assert (found["format"], found["bytes"]) == ("int8", Path("m.pt").stat().st_size)
    assert found["tables"][0] == {"name": "movies", "rows": 300, "embedding_dim": 100, "mode": "mean"}
    assert sorted(torch.load("m.pt", weights_only=True)) == ["movies.weight", "users.scale", "users.weight"]


def test_values_of_a_checkpoint_are_said_by_it_or_by_options(folder: Path) -> None:
    assert run("convert", "model.safetensors", "said.pt", "-q")[0] == 0
    code, _, err = run("export", "said.pt", "--table", "movies", "--to", "m.pbag")
    assert (code, err) == (0, "")
    found, made = packedbag.load("m.pbag"), packedbag.load("movies.pbag")
    assert (found.bits_per_value, found.code, found.mode, found.padding_idx) == (4, "thermometer", "mean", 0)
    assert np.array_equal(found.bag(np.array([[1, 2]])), made.bag(np.array([[1, 2]])))
    arguments = ("export", "checkpoint.pt", "--table", "movies", "--to", "m.pbag", "--embedding-dim", "100")
    assert run(*arguments, "--bits-per-value", "4", "--code", "thermometer")[0] == 0
    assert packedbag.load("m.pbag").bits_per_value == 4
    code, _, err = run("export", "movies.pbag", "--to", "m.npy", "--bits-per-value", "4")
    assert code == 2
    assert err == "error: --bits-per-value is 4; it must be left out where MODEL is a packed file: it says that.\n"


def test_a_checkpoint_is_exported_with_what_it_does_not_say_as_options(folder: Path) -> None:
    arguments = ("export", "checkpoint.pt", "--table", "movies", "--to", "m.pbag")
    code, _, err = run(*arguments)
    assert code == 0
    assert "note: users: D is taken as 64, all bits of a row: MODEL does not say it. Else pass --embedding-dim." in err
    assert "note: a checkpoint does not say how its tables are reduced: pass --mode, or bags are sums." in err
    code, _, err = run(*arguments, "--mode", "mean")
    assert "--mode" not in err
    assert packedbag.load("m.pbag").mode == "mean"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.pbag", "--to", "x.npy"), "none.pbag: cannot be read (No such file or directory)."),
        (
            ("model.safetensors", "--to", "x.npy"),
            "MODEL is 2 tables: movies, users; it must be one, for npy. Pick one by",
        ),
        (("model.safetensors", "--to", "x.zip"), "path is 'x.zip'; it must be a name that ends in .safetensors, .pbag"),
        (("model.safetensors", "--to", "x", "--format", "zip"), "format is 'zip'; it must be one of 'safetensors'"),
        (("model.safetensors", "--to", "none/x.npy"), "--to is none/x.npy; it must be a file in a folder that exists"),
        (
            ("model.safetensors", "--to", "x.npy", "--table", "a"),
            "--table is 'a'; it must be one of 'movies', 'users'.",
        ),
        (("movies.pbag", "--to", "x.npy", "--mode", "median"), "mode is 'median'; it must be one of 'sum'"),
        (("movies.xyz", "--to", "x.npy"), "movies.xyz: is not read, by the end of its name, '.xyz'"),
    ],
)
def test_mistakes_are_told_in_one_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(folder.iterdir())
    code, out, err = run("export", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_ctrl_c_leaves_the_old_file_and_no_other(folder: Path) -> None:
    packedbag.save(PackedTable(np.zeros((20_000_000, 4), np.uint32), 128), "large.pbag")
    Path("t.safetensors").write_bytes(b"old")
    before = sorted(folder.iterdir())
    process = start("export", "large.pbag", "--to", "t.safetensors")
    try:
        for _ in range(1000):
            if sorted(folder.iterdir()) != before:
                break
            if process.poll() is not None:
                pytest.skip("it was done before it could be stopped")
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    if process.returncode == 0:
        pytest.skip("it was done before it could be stopped")
    assert process.returncode == 130
    assert "Traceback" not in err
    assert Path("t.safetensors").read_bytes() == b"old"
    assert sorted(folder.iterdir()) == before


# inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_names_dead_columns_and_counts_repeated_rows(folder: Path) -> None:
    found = answer("inspect", "model.safetensors", "--json")
    assert (found["format"], found["bytes"]) == ("safetensors", Path("model.safetensors").stat().st_size)
    movies, users = found["tables"]
    assert (movies["name"], movies["rows"], movies["embedding_dim"], movies["bits_per_value"]) == (
        "movies",
        300,
        100,
        4,
    )
    assert movies["metadata"] == {"mode": "mean", "padding_idx": 0}
    assert movies["dead_columns"] == {"always_minus": [0, 2], "always_plus": [40]}
    assert movies["duplicate_rows"] == 10
    bits = packedbag.unpack(packedbag.load("movies.pbag").words, 100) > 0
    np.testing.assert_allclose(movies["density_by_column"], bits.mean(0), atol=1e-6)
    assert movies["density"] == pytest.approx(bits.mean())
    assert users["dead_columns"] == {"always_minus": [], "always_plus": []}
    assert (users["duplicate_rows"], users["scale"]) == (0, "row")


def test_inspect_shows_a_table(folder: Path) -> None:
    code, out, err = run("inspect", "movies.pbag")
    assert (code, err) == (0, "")
    for line in (
        "movies.pbag: pbag, 8.9 kB, 1 table",
        "│ shape             │ 300 x 100, 4 bits a value; 4.8 kB",
        "│ columns always -1 │ 2: 0, 2",
        "│ columns always +1 │ 1: 40",
        "│ rows that repeat  │ 10 (3.3%)",
    ):
        assert line in out
    assert "\x1b" not in out


def test_inspect_and_export_keep_the_code_of_values(folder: Path) -> None:
    packedbag.save({"item": table(20, 64, "table", bits=4, code="binary")}, "item.safetensors")
    assert "│ shape             │ 20 x 64, 4 bits a value, binary; 160 B" in run("inspect", "item.safetensors")[1]
    (plain,) = answer("inspect", "item.safetensors", "--header", "--json")["tables"]
    assert (plain["bits_per_value"], plain["code"]) == (4, "binary")
    assert answer("inspect", "movies.pbag", "--header", "--json")["tables"][0]["code"] == "thermometer"
    assert run("export", "item.safetensors", "--to", "item.pbag", "--mode", "sum", "--quiet") == (0, "", "")
    assert run("verify", "item.pbag", "--quiet") == (0, "", "")
    expected = packedbag.load("item.safetensors")
    expected.metadata["mode"] = "sum"
    assert_equal(packedbag.load("item.pbag"), expected)


def test_inspect_reads_no_words_where_the_header_is_asked_for(folder: Path) -> None:
    found = answer("inspect", "movies.pbag", "--header", "--json")
    assert "density" not in found["tables"][0]
    assert len(found["tables"][0]["sha256"]) == 64
    assert "rows that repeat" not in run("inspect", "movies.pbag", "--header")[1]


def test_inspect_takes_a_table_without_rows(folder: Path) -> None:
    packedbag.save(table(0), "empty.pbag")
    assert answer("inspect", "empty.pbag", "--json")["tables"][0]["rows"] == 0
    assert run("inspect", "empty.pbag")[0] == 0


def test_names_cannot_send_codes_to_the_terminal(folder: Path) -> None:
    packedbag.save({"a\x1b[31mred": table(mode="sum", field="\x1b[0m")}, "t.pbag")
    for command in ("inspect", "verify"):
        assert "\x1b" not in run(command, "t.pbag")[1]


# verify ------------------------------------------------------------------------------------------------------------


def test_verify_tells_whole_files_from_damaged_ones(folder: Path) -> None:
    code, out, err = run("verify", "model.safetensors")
    assert (code, err) == (0, "")
    sums = packedbag.verify("model.safetensors")
    assert out == f"movies: whole, sha256 {sums['movies']}\nusers: whole, sha256 {sums['users']}\n"
    assert run("verify", "model.safetensors", "--quiet") == (0, "", "")
    content = bytearray(Path("model.safetensors").read_bytes())
    content[content.index(packedbag.load("model.safetensors", "users").words[500].tobytes())] ^= 1
    Path("model.safetensors").write_bytes(content)
    code, out, err = run("verify", "model.safetensors")
    assert code == 1
    assert out.startswith("movies: whole")
    assert "users" not in out
    assert err.startswith("error: model.safetensors: the words of table 'users' have sha256")
    code, out, _ = run("verify", "model.safetensors", "--json")
    assert code == 1
    assert [each["is_whole"] for each in json.loads(out)["tables"]] == [True, False]


def test_verify_refuses_what_is_no_packed_file(folder: Path) -> None:
    Path("cut.pbag").write_bytes(Path("movies.pbag").read_bytes()[:-1])
    for name in ("cut.pbag", "checkpoint.pt", "none.pbag"):
        code, out, err = run("verify", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {name}: ")


def test_commands_write_json_to_files(folder: Path) -> None:
    for command in ("inspect", "verify"):
        code, out, _ = run(command, "movies.pbag", "--json", f"{command}.json")
        assert code == 0
        assert out
        assert json.loads(Path(f"{command}.json").read_text())["path"] == "movies.pbag"
