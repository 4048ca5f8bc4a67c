"""Files that are cut, damaged, foreign, of a later version, or made to hurt: a clear error, and no memory for them."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import packedbag
from packedbag.core.errors import DataError, PackedBagError
from packedbag.io import description, npy_file, pbag, safetensors_tables
from packedbag.io.formats import Format
from packedbag.io.tables import describe
from packedbag.report import memory
from tests.io.tables import assert_equal, every_format, skip_unless_installed, table


def written(folder: Path, form: Format, **options: Any) -> Path:
    skip_unless_installed(form)
    folder.mkdir(exist_ok=True)
    path = folder / f"t{form.suffixes[0]}"
    packedbag.save(table(**options), path)
    return path


@every_format
def test_a_missing_file_and_a_folder_are_errors_that_name_them(tmp_path: Path, form: Format) -> None:
    skip_unless_installed(form)
    for name in ("none", "folder"):
        path = tmp_path / f"{name}{form.suffixes[0]}"
        if name == "folder":
            path.mkdir()
        with pytest.raises(DataError, match=name):
            packedbag.load(path)


@every_format
@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"PK\3\4" * 2000, b"{" * 9000, b"\xff" * 9000])
def test_a_file_of_something_else_is_refused(tmp_path: Path, form: Format, content: bytes) -> None:
    path = written(tmp_path, form)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\."):
        packedbag.load(path)


@every_format
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, form: Format, part: float) -> None:
    path = written(tmp_path, form, scale="row", rows=300)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError):
        packedbag.load(path, verify=True)


@every_format
def test_a_file_with_something_behind_it_is_refused(tmp_path: Path, form: Format) -> None:
    path = written(tmp_path, form)
    with path.open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(DataError):
        packedbag.load(path)


@every_format
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_by_verify_or_changes_nothing(tmp_path: Path, form: Format, data: st.DataObject) -> None:
    """Bytes anywhere in any file of the table: an error of packedbag, or the same table."""
    before = table(rows=30, scale="row")
    path = written(tmp_path, form, rows=30, scale="row")
    target = data.draw(st.sampled_from(sorted(tmp_path.glob("t.*"))))
    content = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    target.write_bytes(content)
    held = memory.peak_bytes() if memory.reset_peak() else 0
    try:
        found = packedbag.load(path, verify=True)
    except PackedBagError:
        pass
    else:
        np.testing.assert_array_equal(found.words, before.words)
        np.testing.assert_array_equal(found.scale, before.scale)
    assert memory.peak_bytes() - held < 64 << 20


def test_a_name_of_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    packedbag.save(table(scale="row"), tmp_path / "t.arrow")
    content = (tmp_path / "t.arrow").read_bytes()
    for byte in (b"\xd0", b"\x1d"):
        (tmp_path / "t.arrow").write_bytes(content.replace(b"words\0", b"wor" + byte + b"s\0"))
        with pytest.raises(DataError):
            packedbag.load(tmp_path / "t.arrow", verify=True)


@every_format
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), keep=st.integers(0, 200))
def test_whatever_bytes_follow_a_good_start_nothing_but_a_clear_error_comes(
    tmp_path: Path, form: Format, content: bytes, keep: int
) -> None:
    path = written(tmp_path, form, rows=3)
    before = path.read_bytes()
    path.write_bytes(before[:keep] + content)
    assume(path.read_bytes() != before)
    with pytest.raises(PackedBagError):
        packedbag.load(path, verify=True)


@every_format
def test_a_flipped_bit_of_the_words_is_named_by_verify_alone(tmp_path: Path, form: Format) -> None:
    path = written(tmp_path, form, rows=50_000, dim=128)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 11] ^= 16
    path.write_bytes(content)
    if form.name != "parquet":  # which has checksums of its own, of each page
        assert packedbag.load(path).num_embeddings == 50_000
    for call in (lambda: packedbag.verify(path), lambda: packedbag.load(path, verify=True)):
        with pytest.raises(DataError, match=r"the words of the table have sha256|checksum|CRC"):
            call()


@every_format
def test_a_reader_of_version_1_alone_refuses_binary_numbers(
    tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All formats checked the version before anything else when there was but one."""
    path = written(tmp_path, form, bits=4, code="binary")
    plain = written(tmp_path / "plain", form, bits=4)
    for module in (description, pbag, safetensors_tables):
        monkeypatch.setattr(module, "VERSIONS", (1,))
    with pytest.raises(DataError, match=r"has format version 2.* Upgrade packedbag"):
        packedbag.load(path)
    assert packedbag.load(plain).code == "thermometer"


# .pbag -----------------------------------------------------------------------------------------------------------


def patched(path: Path, **fields: int) -> None:
    """Write fields into the header of a .pbag file, and the checksum that belongs to them."""
    places = {"version": (8, "I"), "rows": (16, "Q"), "dim": (24, "I"), "width": (28, "I"), "bits": (32, "I")}
    places |= {
        "kind": (36, "I"),
        "words_at": (40, "Q"),
        "scale_at": (48, "Q"),
        "end": (56, "Q"),
        "text": (96, "I"),
        "code": (100, "I"),
    }
    content = bytearray(path.read_bytes())
    for name, value in fields.items():
        offset, kind = places[name]
        struct.pack_into("<" + kind, content, offset, value)
    struct.pack_into("<I", content, pbag.CRC_AT, 0)
    struct.pack_into("<I", content, pbag.CRC_AT, zlib.crc32(content[: pbag.PAGE]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, r"has format version 3; this packedbag reads 1 and 2\. Upgrade packedbag"),
        ({"version": 2}, "claims scale kind 2, code 1701651067 and"),  # the text, read as a code
        ({"version": 2, "code": 2}, "claims scale kind 2, code 2 and"),
        ({"rows": 2**62}, "num_embeddings"),
        ({"rows": 2**40}, "claims 2 words a row of 40, words at byte 4096 and a scale at 4160"),
        ({"rows": 6}, "has 4180 bytes; what its header lists takes 4184"),
        ({"dim": 0}, "embedding_dim is 0"),
        ({"dim": 2**31}, "embedding_dim is 2147483648"),
        ({"dim": 400}, "claims 2 words a row of 400"),
        ({"width": 2**31}, "claims 2147483648 words a row"),
        ({"bits": 3}, "bits_per_value is 3"),
        ({"kind": 7}, "claims scale kind 7"),
        ({"words_at": 64}, "claims .* words at byte 64"),
        ({"words_at": 4098}, "claims .* words at byte 4098"),
        ({"scale_at": 4100}, "a scale at 4100"),
        ({"scale_at": 2**63}, "has 4180 bytes; what its header lists takes 9223372036854775828"),
        ({"end": 2**63}, "has 4180 bytes; its header says 9223372036854775808"),
        ({"text": 5000}, "5000 bytes of text"),
        ({"text": 3}, "the text of its header is no JSON"),
    ],
)
def test_a_header_of_pbag_that_claims_what_is_not_there_is_refused(
    tmp_path: Path, fields: dict[str, int], message: str
) -> None:
    path = tmp_path / "t.pbag"
    packedbag.save(table(scale="row"), path)
    patched(path, **fields)
    held = memory.peak_bytes() if memory.reset_peak() else 0
    with pytest.raises(DataError, match=message):
        packedbag.load(path)
    assert memory.peak_bytes() - held < 16 << 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code": 2}, "claims scale kind 1, code 2 and"),
        ({"bits": 1}, "bits_per_value is 1; it must be 2, 4 or 8 with code='binary'"),
        ({"bits": 16, "dim": 48}, "bits_per_value is 16; it must be 2, 4 or 8 with code='binary'"),
        ({"kind": 2}, "scale is 'row'; it must be None or 'table' with code='binary'"),
        ({"version": 1}, "the text of its header is no JSON"),
        ({"text": 3993}, "3993 bytes of text"),
    ],
)
def test_a_header_of_pbag_whose_code_fits_nothing_is_refused(
    tmp_path: Path, fields: dict[str, int], message: str
) -> None:
    path = tmp_path / "t.pbag"
    packedbag.save(table(scale="table", bits=4, code="binary"), path)
    patched(path, **fields)
    with pytest.raises(DataError, match=message):
        packedbag.load(path)


def test_a_damaged_header_of_pbag_is_found_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "t.pbag"
    packedbag.save(table(), path)
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="its header is damaged: the checksum differs"):
        packedbag.load(path)


def test_metadata_that_do_not_fit_a_page_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackedBagError, match=r"metadata is \d+ bytes of JSON with the name; it must be at most 3996"):
        packedbag.save(table(thing="x" * 4000), tmp_path / "t.pbag")
    with pytest.raises(PackedBagError, match=r"it must be at most 3992"):
        packedbag.save(table(bits=4, code="binary", thing="x" * 4000), tmp_path / "t.pbag")
    for number in (1, 2):
        made = table(bits=4, code=("thermometer", "binary")[number - 1], thing="")
        made.metadata["thing"] = "x" * (4000 - 4 * number - len('{"metadata": {"thing": ""}, "name": ""}'))
        packedbag.save(made, tmp_path / "t.pbag")  # a page that is full to its last byte
        assert_equal(packedbag.load(tmp_path / "t.pbag"), made)


# .npy ------------------------------------------------------------------------------------------------------------


def sidecar_with(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    said = json.loads(npy_file.sidecar(path).read_text())
    change(said)
    npy_file.sidecar(path).write_text(json.dumps(said))


def test_a_pair_that_does_not_belong_together_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    packedbag.save(table(1000), path)
    words = path.read_bytes()
    packedbag.save(table(1000, seed=2), path)
    path.write_bytes(words)
    with pytest.raises(DataError, match=r"does not belong to its sidecar t\.npy\.json: .* `packedbag verify`"):
        packedbag.load(path)
    np.save(path, np.zeros((7, 2), np.uint32))
    with pytest.raises(DataError, match=r"does not belong to its sidecar t\.npy\.json: an array of uint32 \(7, 2\)"):
        packedbag.load(path)


def test_scales_of_another_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    packedbag.save(table(1000, scale="row"), path)
    np.save(npy_file.scales(path), np.ones(1000, np.float32))
    with pytest.raises(DataError, match=r"t\.npy\.scale\.npy: does not belong to its sidecar t\.npy\.json"):
        packedbag.load(path)
    packedbag.save(table(1000), path)
    assert not npy_file.scales(path).exists()


def test_words_without_a_sidecar_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", table().words)
    with pytest.raises(DataError, match=r"t\.npy\.json: cannot be read .* PackedTable\(numpy\.load\(path\), D\) takes"):
        packedbag.load(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("version", 2),  # without a code
        ("version", True),
        ("code", "binary"),  # in version 1
        ("code", "gray"),
        ("code", None),
        ("bit_order", "msb"),
        ("embedding_dim", -1),
        ("embedding_dim", "40"),
        ("embedding_dim", None),
        ("num_embeddings", -1),
        ("num_embeddings", 2**70),
        ("num_embeddings", True),
        ("bits_per_value", 0),
        ("scale", "column"),
        ("scale", ["row"]),
        ("scale_value", None),
        ("scale_value", "1"),
        ("name", 5),
        ("sha256", 5),
        ("metadata", []),
        ("metadata", {"mode": "median"}),
        ("metadata", {"mode": 7}),
        ("metadata", {"padding_idx": 99}),
        ("metadata", {"padding_idx": "0"}),
    ],
)
def test_a_sidecar_that_says_what_cannot_be_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "t.npy"
    packedbag.save(table(scale="table"), path)
    sidecar_with(path, lambda said: said.update({field: value}))
    with pytest.raises(DataError):
        packedbag.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"code": "gray"},
        {"code": 1},
        {"code": None},
        {"code": ["binary"]},
        {"bits_per_value": 1},
        {"bits_per_value": 16},
        {"scale": "row"},
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["npy", "arrow"])
def test_a_description_whose_code_fits_nothing_is_refused(tmp_path: Path, suffix: str, changes: dict[str, Any]) -> None:
    path, made = tmp_path / f"t.{suffix}", table(dim=64, scale="table", bits=4, code="binary")
    if suffix == "npy":
        packedbag.save(made, path)
        sidecar_with(path, lambda said: said.update(changes))
    else:
        pa = pytest.importorskip("pyarrow")
        packedbag.save(made, path)
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).read_all()
        said = json.loads(batch.schema.metadata[b"packedbag"]) | changes
        batch = batch.replace_schema_metadata({"packedbag": json.dumps(said)})
        path.unlink()
        with pa.ipc.new_file(str(path), batch.schema) as writer:
            writer.write(batch)
    with pytest.raises(DataError, match=r"describes no packed table: (code|bits_per_value|scale) is .*; it must be"):
        packedbag.load(path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    packedbag.save(table(), path)
    npy_file.sidecar(path).write_text("[" * 100_000)
    with pytest.raises(DataError, match="the sidecar is no JSON"):
        packedbag.load(path)


def test_an_array_of_pickled_objects_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return sys.exit, (3,)

    path = tmp_path / "t.npy"
    packedbag.save(table(), path)
    np.save(path, np.array([[Evil()]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="does not belong to its sidecar"):
        packedbag.load(path)


# Names -----------------------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\0b", "\u202e", "x" * 1000, "a.b/c"])
def test_a_name_is_a_text_and_never_a_path(tmp_path: Path, form: Format, name: str) -> None:
    skip_unless_installed(form)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"t{form.suffixes[0]}"
    packedbag.save({name: table()}, path)
    assert list(describe(path)) == [name]
    packedbag.load(path, name, verify=True)
    assert [each.name for each in tmp_path.iterdir()] == ["in"]
    assert all(each.name.startswith("t.") for each in (tmp_path / "in").iterdir())
