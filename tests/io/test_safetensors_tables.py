"""`packedbag.io.safetensors_tables`, and the checks of `packedbag.io.safetensors_header`."""

import json
import subprocess
import sys

import numpy as np
import pytest

from packedbag import PackedTable
from packedbag.core.errors import ArgumentError, DataError, DtypeError, PackedBagError
from packedbag.io import dense_tensor
from packedbag.io.dense_tensor import DenseTensor
from packedbag.io.safetensors_tables import KEY, read, save
from packedbag.io.stored import checksum


def table(rows=5, dim=40, scale=None, **metadata):
    words = np.random.default_rng(rows + dim).integers(0, 2**32, (rows, -(-dim // 32)), np.uint32)
    words[:, -1] &= (1 << ((dim - 1) % 32 + 1)) - 1
    return PackedTable(words, dim, scale=scale, metadata=metadata)


def tables():
    return {
        "user.": table(scale=np.arange(5, dtype=np.float32), mode="mean"),
        "": table(3, 64),
        "item_": table(0, 1, scale=np.float32(0.5)),
    }


def others():
    return {
        "linear.weight": np.arange(6.0).reshape(2, 3),
        "flag": np.array(True),
        "none": np.zeros((0, 4), np.float16),
        "counts": np.arange(10, dtype=np.int64)[::2],
        "swapped": np.arange(3, dtype=">i4"),
    }


def written(tmp_path, *arguments):
    path = tmp_path / "t.safetensors"
    save(path, *arguments)
    return path


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.words, expected.words)
    assert (found.embedding_dim, found.metadata) == (expected.embedding_dim, expected.metadata)
    assert (found.bits_per_value, found.code) == (expected.bits_per_value, expected.code)
    assert (found.scale is None) == (expected.scale is None)
    if expected.scale is not None:
        np.testing.assert_array_equal(found.scale, expected.scale)


@pytest.mark.parametrize("mmap", [False, True])
def test_tables_and_other_tensors_come_back_as_they_were(tmp_path, mmap):
    found = read(written(tmp_path, tables(), others()))
    assert found.tables.keys() == tables().keys()
    for prefix, expected in tables().items():
        assert_equal(found.tables[prefix].load(mmap=mmap), expected)
        found.tables[prefix].verify()
    assert found.dense.keys() == others().keys()
    for name, expected in others().items():
        array = found.dense[name].array()
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype.newbyteorder("<")


def test_what_a_header_says_of_a_table_is_there_before_its_words_are_read(tmp_path):
    stored = read(written(tmp_path, tables(), others())).tables["user."]
    assert (stored.num_embeddings, stored.embedding_dim, stored.scale_kind) == (5, 40, "row")
    assert stored.metadata == {"mode": "mean"}
    assert stored.sha256 == checksum(tables()["user."].words, tables()["user."].scale)


def test_bits_per_value_come_back(tmp_path):
    several = PackedTable(table().words, 40, bits_per_value=4)
    assert read(written(tmp_path, {"a.": several})).tables["a."].load().bits_per_value == 4


def test_one_table_of_binary_numbers_makes_a_file_of_version_2_whose_tables_all_say_their_code(tmp_path):
    binary = PackedTable(table().words, 40, bits_per_value=4, code="binary")
    path = written(tmp_path, {"a.": binary, "b.": table()})
    found = read(path).tables
    assert_equal(found["a."].load(), binary)
    assert_equal(found["b."].load(), table())
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    said = json.loads(header["__metadata__"][KEY])
    assert said["version"] == 2
    assert {prefix: each["code"] for prefix, each in said["tables"].items()} == {"a.": "binary", "b.": "thermometer"}
    written(tmp_path, {"b.": table()})
    assert b"code" not in path.read_bytes()


def test_words_begin_at_a_line_of_the_cache(tmp_path):
    path = written(
        tmp_path, {"": table(scale=np.float32(2), mode="sum")}, {"linear.weight": np.ones((2, 3), np.float32)}
    )
    words = read(path).tables[""].load().words
    assert words.offset % 64 == 0


def test_equal_contents_make_equal_bytes_in_whatever_order_they_come(tmp_path):
    first = written(tmp_path, tables(), others()).read_bytes()
    backwards = [dict(reversed(part.items())) for part in (tables(), others())]
    assert written(tmp_path, *backwards).read_bytes() == first


def test_any_reader_of_safetensors_finds_the_tensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    found = library.load_file(written(tmp_path, tables(), others()))
    assert found.keys() == {"user.weight", "user.scale", "weight", "item_weight", "item_scale", *others()}
    np.testing.assert_array_equal(found["user.weight"], tables()["user."].words)
    np.testing.assert_array_equal(found["counts"], others()["counts"])


def test_words_are_mapped_and_every_tensor_begins_at_a_multiple_of_its_element(tmp_path):
    path = written(tmp_path, tables(), others())
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    sizes = {"F64": 8, "I64": 8, "U32": 4, "F32": 4, "I32": 4, "F16": 2, "BOOL": 1}
    for name in set(header) - {"__metadata__"}:
        assert (8 + length + header[name]["data_offsets"][0]) % sizes[header[name]["dtype"]] == 0, name
    words = read(path).tables["user."].load().words
    assert isinstance(words, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        words[0] = 0


def test_a_tensor_whose_dtype_numpy_lacks_is_kept_as_bytes(tmp_path):
    halves = DenseTensor("BF16", (2, 2), lambda: iter([b"12", b"345678"]))
    found = read(written(tmp_path, tables(), {"h": halves})).dense["h"]
    assert found == halves
    assert b"".join(found.pieces()) == b"12345678"
    with pytest.raises(DtypeError, match="dtype BF16; it must be one that NumPy has"):
        found.array()


def test_what_is_no_tensor_of_the_format_is_refused(tmp_path):
    with pytest.raises(DtypeError, match="array has dtype complex128"):
        save(tmp_path / "t", tables(), {"c": np.zeros(2, np.complex128)})
    with pytest.raises(ArgumentError, match=r"dense is holding 'user\.scale'; .* free of names of table 'user\.'"):
        save(tmp_path / "t", tables(), {"user.scale": np.zeros(2)})
    with pytest.raises(ArgumentError, match="dense is holding '__metadata__'"):
        save(tmp_path / "t", tables(), {"__metadata__": np.zeros(2)})
    with pytest.raises(ArgumentError, match=r"metadata is .* it must be JSON"):
        save(tmp_path / "t", {"a.": table(thing=object())})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_tensor_leaves_the_old_file(tmp_path):
    path = written(tmp_path, tables())
    before = path.read_bytes()

    def pieces():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(path, tables(), {"a": DenseTensor("U8", (8,), pieces)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_changed_words_are_found_by_their_checksum(tmp_path):
    path = written(tmp_path, {"a.": table(), "b.": table(7)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = read(path)
    found.tables["a."].verify()
    with pytest.raises(DataError, match=r"the words of table 'b\.' have sha256 \w+\.\.\., the file says"):
        found.tables["b."].verify()


def everything(path):
    """Read all there is; return it in a form that can be compared."""
    found = read(path)
    for one in found.tables.values():
        one.verify()
    loaded = {prefix: one.load() for prefix, one in found.tables.items()}
    return {
        prefix: (t.words.tolist(), t.scale if t.scale is None else t.scale.tolist()) for prefix, t in loaded.items()
    }


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = written(tmp_path, tables(), others()).read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            read(path)
    path.write_bytes(data + b"x")
    with pytest.raises(DataError, match="where its header lists"):
        read(path)


def test_a_changed_byte_is_an_error_of_the_file_or_changes_no_table(tmp_path):
    path = written(tmp_path, {"user.": table(), "item.": table(2)})
    expected, data = everything(path), path.read_bytes()
    refused = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = everything(path)
        except DataError:
            refused += 1
        else:
            assert list(found.values()) == list(expected.values()), position
    assert refused > len(data) * 0.8


def write_file(path, header, data=b"\0" * 40):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def described(version=1, **changes):
    """Return the header of a file with one table of 5 x 40, with other fields of its metadata."""
    own = {"embedding_dim": 40, "bits_per_value": 1, "scale": None, "metadata": {}, "sha256": None} | changes
    text = json.dumps({"version": version, "tables": {"a.": own}})
    return {"__metadata__": {KEY: text}, "a.weight": {"dtype": "U32", "shape": [5, 2], "data_offsets": [0, 40]}}


def test_the_header_that_hostile_ones_are_made_of_is_read(tmp_path):
    write_file(tmp_path / "t", described())
    assert read(tmp_path / "t").tables["a."].load().embedding_dim == 40
    write_file(tmp_path / "t", described(version=2, code="binary", bits_per_value=4))
    assert read(tmp_path / "t").tables["a."].load().code == "binary"


ENTRIES = [
    {"dtype": "U32", "shape": [5, 2], "data_offsets": [0, 41]},
    {"dtype": "U32", "shape": [5, 2], "data_offsets": [40, 0]},
    {"dtype": "U32", "shape": [5, 2], "data_offsets": [8, 48]},
    {"dtype": "U32", "shape": [-5, -2], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [2**62, 2**62], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [2**70, 0], "data_offsets": [0, 0]},
    {"dtype": "U32", "shape": [1] * 65, "data_offsets": [0, 4]},
    {"dtype": "U32", "shape": [5, 2.0], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [True, 10], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": "52", "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [5, 2], "data_offsets": [0, 40, 80]},
    {"dtype": "Q7", "shape": [5, 2], "data_offsets": [0, 40]},
    {"dtype": ["U32"], "shape": [5, 2], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [5, 2]},
    {"dtype": "F32", "shape": [5, 2], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [10], "data_offsets": [0, 40]},
    {"dtype": "U32", "shape": [2, 5], "data_offsets": [0, 40]},
    "U32",
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_entry_that_is_no_table_is_refused(tmp_path, entry):
    write_file(tmp_path / "t", described() | {"a.weight": entry})
    with pytest.raises(DataError):
        read(tmp_path / "t")


@pytest.mark.parametrize(
    ("start", "end"), [(0, 8), (32, 40), (44, 52)], ids=["the same bytes", "its last bytes", "after a hole"]
)
def test_tensors_that_overlap_or_leave_holes_are_refused(tmp_path, start, end):
    second = {"dtype": "U8", "shape": [8], "data_offsets": [start, end]}
    write_file(tmp_path / "t", described() | {"b": second}, b"\0" * 52)
    with pytest.raises(DataError, match=r"where the tensor before it ends at|where its header lists"):
        read(tmp_path / "t")


FIELDS = [
    {"embedding_dim": 100},
    {"embedding_dim": -1},
    {"embedding_dim": 10**30},
    {"embedding_dim": "40"},
    {"embedding_dim": None},
    {"bits_per_value": 3},
    {"bits_per_value": []},
    {"code": "binary", "bits_per_value": 4},
    {"version": 2},
    {"version": 2, "code": None},
    {"version": 2, "code": "gray", "bits_per_value": 4},
    {"version": 2, "code": ["binary"], "bits_per_value": 4},
    {"version": 2, "code": "binary"},
    {"version": 2, "code": "binary", "bits_per_value": 16, "embedding_dim": 48},
    {"version": 2, "code": "binary", "bits_per_value": 4, "scale": "row"},
    {"version": True},
    {"scale": "row"},
    {"scale": ["row"]},
    {"metadata": None},
    {"metadata": []},
    {"sha256": 7},
]


@pytest.mark.parametrize("changes", FIELDS, ids=str)
def test_metadata_that_do_not_fit_are_refused(tmp_path, changes):
    write_file(tmp_path / "t", described(**changes))
    with pytest.raises(DataError):
        read(tmp_path / "t")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"{" * 50_000, "is no JSON"),
        (b'{"a":' * 50_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ({"__metadata__": 3}, "metadata that are no texts"),
        ({}, "holds no packed table"),
        ({"__metadata__": {KEY: 5}}, "they are no text"),
        ({"__metadata__": {KEY: "[" * 50_000}}, "is no JSON"),
        ({"__metadata__": {KEY: "{}"}}, "they have no version"),
        (
            {"__metadata__": {KEY: '{"version": 3}'}},
            r"has format version 3; this packedbag reads 1 and 2\. Upgrade packedbag",
        ),
        ({"__metadata__": {KEY: '{"version": 1}'}}, "they list no tables"),
        ({"__metadata__": {KEY: '{"version": 1, "tables": {"a.": {}}}'}}, r"'a\.weight' is missing"),
    ],
)
def test_headers_that_are_none_are_refused_and_say_why(tmp_path, header, says):
    write_file(tmp_path / "t", header, b"")
    with pytest.raises(DataError, match=says):
        read(tmp_path / "t")


def test_a_header_that_claims_more_bytes_than_the_file_has_is_not_read(tmp_path):
    (tmp_path / "t").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="a header of 9,223,372,036,854,775,808 bytes in a file of 10"):
        read(tmp_path / "t")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_a_file_that_became_shorter_is_refused_when_a_tensor_is_read(tmp_path):
    path = written(tmp_path, tables(), others())
    tensor = read(path).dense["linear.weight"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PackedBagError, match=r"t\.safetensors: ends \d+ bytes early"):
        tensor.array()


@pytest.mark.parametrize("size", [1, 8, 24, 1000])
def test_the_size_of_pieces_changes_nothing(tmp_path, monkeypatch, size):
    expected = written(tmp_path, tables(), others()).read_bytes()
    monkeypatch.setattr(dense_tensor, "PIECE", max(size, 8))
    assert written(tmp_path, tables(), others()).read_bytes() == expected


def test_tables_are_written_and_read_without_torch_and_safetensors(tmp_path):
    code = (
        "import sys, numpy; sys.modules['safetensors'] = None\n"
        "from packedbag.io.safetensors_tables import read, save\n"
        "from packedbag.table import PackedTable\n"
        "save(sys.argv[1], {'a.': PackedTable(numpy.ones((2, 1), numpy.uint32), 3)}, {'b': numpy.ones(2)})\n"
        "print(read(sys.argv[1]).tables['a.'].load().words.tolist(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "t"], capture_output=True, text=True, check=True)
    assert done.stdout == "[[1], [1]] False\n"
