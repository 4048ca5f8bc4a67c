"""`packedbag.io.torch_writer`: torch itself reads what it writes."""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from packedbag.core.errors import ArgumentError, DtypeError
from packedbag.io import dense_tensor, torch_writer
from packedbag.io.dense_tensor import DenseTensor
from packedbag.io.torch_writer import write_torch

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def tensors():
    made = {str(dtype): torch.arange(-3, 9).reshape(3, 4).to(torch.float32).to(dtype) for dtype in DTYPES}
    long = torch.arange(100.0)
    views = {"transposed": torch.arange(12).reshape(3, 4).t(), "part": long[10:20], "strided": long[::7]}
    return (
        made
        | views
        | {
            "expanded": torch.ones(1).expand(4),
            "number": torch.tensor(3.0),
            "empty": torch.zeros(0, 3, dtype=torch.bool),
            "conjugated": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
    )


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("piece", [8, dense_tensor.PIECE])
def test_torch_reads_tensors_of_every_dtype_and_layout(tmp_path, monkeypatch, mmap, piece):
    monkeypatch.setattr(torch_writer, "PIECE", piece)
    write_torch(tmp_path / "t.pt", tensors())
    found = torch.load(tmp_path / "t.pt", weights_only=True, mmap=mmap)
    assert list(found) == list(tensors())
    for name, expected in tensors().items():
        expected = expected.detach().resolve_conj()
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        assert bits(found[name]) == bits(expected), name
        assert not found[name].requires_grad


def test_a_tensor_that_is_not_there_yet_is_written_from_its_pieces(tmp_path):
    made = DenseTensor("BOOL", (2, 3), lambda: iter([b"\1\0", b"\0\0\1\1"]))
    counted = []
    write_torch(tmp_path / "t.pt", {"a": made}, wrote=counted.append)
    assert torch.load(tmp_path / "t.pt", weights_only=True)["a"].tolist() == [[True, False, False], [False, True, True]]
    assert counted == [2, 4]


def test_tensors_that_are_one_memory_stay_so_and_are_written_once(tmp_path):
    one, made = torch.arange(1000.0), DenseTensor.of(np.arange(1000.0))
    write_torch(tmp_path / "t.pt", {"a": one, "b": one.detach(), "c": made, "d": made})
    found = torch.load(tmp_path / "t.pt", weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert found["c"].data_ptr() == found["d"].data_ptr()
    assert (tmp_path / "t.pt").stat().st_size < 4000 + 8000 + 2000


def test_numbers_texts_and_the_versions_of_modules_are_kept(tmp_path):
    state = OrderedDict(a=torch.ones(1), extra={"names": ["x", 3, None], "inner": [torch.zeros(2)]})
    state._metadata = OrderedDict({"": {"version": 2}})
    write_torch(tmp_path / "t.pt", state)
    found = torch.load(tmp_path / "t.pt", weights_only=True)
    assert found["extra"]["names"] == ["x", 3, None]
    assert torch.equal(found["extra"]["inner"][0], torch.zeros(2, device="cpu"))
    assert found._metadata == {"": {"version": 2}}


def test_the_file_is_a_sound_zip_file_with_aligned_storages(tmp_path):
    write_torch(tmp_path / "t.pt", tensors())
    data = (tmp_path / "t.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            name, extra = (int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_equal_contents_make_equal_bytes(tmp_path):
    for name in "ab":
        write_torch(tmp_path / name, tensors())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.eye(2, device="cpu").to_sparse(), "a tensor of the source is torch.sparse_coo"),
        (torch.empty(2, device="meta"), "on the meta device"),
        (torch.zeros(2, dtype=torch.complex128), "has dtype complex128"),
    ],
)
def test_a_tensor_that_cannot_be_written_leaves_the_old_file(tmp_path, tensor, says):
    (tmp_path / "t.pt").write_bytes(b"old")
    with pytest.raises((ArgumentError, DtypeError), match=says):
        write_torch(tmp_path / "t.pt", {"a": tensor})
    assert (tmp_path / "t.pt").read_bytes() == b"old"


def test_what_pickle_cannot_take_leaves_the_old_file(tmp_path):
    (tmp_path / "t.pt").write_bytes(b"old")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        write_torch(tmp_path / "t.pt", {"a": lambda: None})
    assert (tmp_path / "t.pt").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file(tmp_path):
    def pieces():
        yield b"1234"
        raise OSError(28, "No space left on device")

    (tmp_path / "t.pt").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_torch(tmp_path / "t.pt", {"a": DenseTensor("U8", (8,), pieces)})
    assert [path.name for path in tmp_path.iterdir()] == ["t.pt"]
    assert (tmp_path / "t.pt").read_bytes() == b"old"
