"""`packedbag.io.torch_file` and `packedbag.io.torch_pickle`: what torch wrote, and what nobody should have."""

import argparse
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from packedbag.adapters.bitorch_engine import BinaryEmbeddingBag
from packedbag.core.errors import DataError
from packedbag.io import torch_file
from packedbag.io.torch_file import TorchFile
from packedbag.io.torch_pickle import Foreign, TensorRef
from packedbag.report import memory
from tests.io.test_torch_writer import bits, tensors


def saved(tmp_path, content, **options):
    torch.save(content, tmp_path / "t.pt", **options)
    return tmp_path / "t.pt"


def data_of(file, name):
    tensor = file.content[name]
    file.check(tensor, name)
    return b"".join(file.dense(tensor).pieces())


@pytest.mark.parametrize("piece", [8, torch_file.PIECE])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_every_dtype_and_layout_have_the_bytes_that_torch_saved(tmp_path, monkeypatch, piece, protocol):
    monkeypatch.setattr(torch_file, "PIECE", piece)
    saved_tensors = {name: tensor.detach() for name, tensor in tensors().items() if name != "conjugated"}
    file = TorchFile(saved(tmp_path, saved_tensors, pickle_protocol=protocol))
    for name, expected in saved_tensors.items():
        assert file.content[name].shape == tuple(expected.shape)
        assert list(data_of(file, name)) == bits(expected), name


def test_the_bytes_that_were_read_are_counted(tmp_path):
    counted = []
    file = TorchFile(saved(tmp_path, {"a": torch.ones(10), "b": torch.ones(2, 3).t()}), counted.append)
    assert sum(counted) == 0
    data_of(file, "a"), data_of(file, "b")
    assert sum(counted) == 64


def test_pieces_hold_whole_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "PIECE", 10)
    file = TorchFile(saved(tmp_path, {"a": torch.arange(14, dtype=torch.uint8).reshape(2, 7)}))
    assert [len(piece) for piece in file.pieces(file.content["a"], 7)] == [7, 7]
    assert [len(piece) for piece in file.pieces(file.content["a"], 3)] == [9, 5]


def test_parameters_and_packed_weights_are_tensors(tmp_path):
    layer = BinaryEmbeddingBag(num_embeddings=4, embedding_dim=40)
    file = TorchFile(saved(tmp_path, {"p": torch.nn.Parameter(torch.ones(2)), "w": layer.weight}))
    assert np.frombuffer(data_of(file, "p"), np.float32).tolist() == [1, 1]
    assert file.content["w"].embedding_dim == 40
    assert data_of(file, "w") == layer.words.cpu().numpy().tobytes()


class Settings:
    def __init__(self):
        self.rate = 3
        self.inner = {"a": [1, 2]}


def test_objects_of_other_classes_are_stood_for(tmp_path):
    content = {"args": argparse.Namespace(a=1), "own": Settings(), "numpy": np.float64(3), "a": torch.ones(1)}
    content |= {"set": {1, 2}, "device": torch.device("cpu"), "size": torch.Size([1]), "array": np.ones(3)}
    file = TorchFile(saved(tmp_path, content))
    assert file.content.keys() == content.keys()
    assert isinstance(file.content["own"], Foreign)
    assert file.content["own"].name.endswith("test_torch_file.Settings")
    assert isinstance(file.content["a"], TensorRef)


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "t.pt", {"data.pkl": pickle.dumps({"a": Evil()})})
    assert isinstance(TorchFile(path).content["a"], Foreign)
    assert not (tmp_path / "executed").exists()
    with zipfile.ZipFile(path) as archive:  # the pickle is one that would
        pickle.loads(archive.read("archive/data.pkl"))
    assert (tmp_path / "executed").exists()


class Pickler(pickle.Pickler):
    """Pickles a storage for each tuple that starts with "storage"."""

    def persistent_id(self, obj):
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


class Tensor:
    def __init__(self, *arguments, build=torch._utils._rebuild_tensor_v2):
        self.arguments, self.build = arguments, build

    def __reduce__(self):
        return self.build, self.arguments


def hostile(path, *described, numel=6, key="0", kind=torch.FloatStorage, build=torch._utils._rebuild_tensor_v2):
    """Write a checkpoint with one storage of 24 bytes, and a tensor in it of which anything may be said."""
    storage = ("storage", kind, key, "cpu", numel)
    target = io.BytesIO()
    Pickler(target, 2).dump({"a": Tensor(storage, *described, False, OrderedDict(), build=build)})
    return zipped(path, {"data.pkl": target.getvalue(), "data/0": b"\0" * 24, "version": b"3\n"})


def test_the_checkpoint_that_hostile_ones_are_made_of_is_read(tmp_path):
    assert data_of(TorchFile(hostile(tmp_path / "t.pt", 0, (2, 3), (3, 1))), "a") == b"\0" * 24
    assert torch.load(tmp_path / "t.pt", weights_only=True)["a"].shape == (2, 3)


HOSTILE = [
    ((0, (2, 4), (4, 1)), {}),
    ((1, (2, 3), (3, 1)), {}),
    ((-1, (2, 3), (3, 1)), {}),
    ((0, (-2, -3), (3, 1)), {}),
    ((0, (2, 3), (3, -1)), {}),
    ((0, (2, 3), (3,)), {}),
    ((0, (2, 3), 7), {}),
    ((0, [2, 3], [3, 1]), {}),
    ((0, (2.0, 3), (3, 1)), {}),
    ((0, (10**9, 10**9), (0, 0)), {}),
    ((0, (10**9,), (0,)), {}),
    ((0, (2**61,) * 64, (0,) * 64), {}),
    ((0, (1,) * 65, (0,) * 65), {}),
    ((0, (2, 10**9), (10**17, 1)), {}),
    ((0, (2**62, 1), (1, 1)), {}),
    ((0, (2, 3), (3, 1)), {"numel": 7}),
    ((0, (2, 3), (3, 1)), {"numel": 10**18}),
    ((0, (2, 3), (3, 1)), {"key": "1"}),
    ((0, (2, 3), (3, 1)), {"key": "../data.pkl"}),
    ((0, (2, 3), (3, 1)), {"kind": torch.DoubleStorage}),
    ((0, (2, 3), (3, 1)), {"kind": OrderedDict}),
]


@pytest.mark.parametrize(("described", "options"), HOSTILE, ids=str)
def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path, described, options):
    with pytest.raises(DataError):
        data_of(TorchFile(hostile(tmp_path / "t.pt", *described, **options)), "a")


def test_a_pickle_that_asks_for_much_memory_gets_none(tmp_path):
    bombs = [
        b"\x80\x02r\xff\xff\xff\x7f.",  # an entry of the memo far beyond the others
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"a.",  # a bytearray
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"a.",  # bytes
        b"\x80\x02\x8b" + (0x7FFFFFFF).to_bytes(4, "little") + b"a.",  # a number
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",  # a frame
        b"]" * 100_000 + b"a" * 99_999 + b".",  # lists in lists
    ]
    claimed = (1 << 40, 1 << 28)  # more than there is, and what would be there
    bombs += [bomb.replace(claimed[0].to_bytes(8, "little"), claimed[1].to_bytes(8, "little")) for bomb in bombs]
    if not memory.reset_peak():
        pytest.skip("no /proc/self/clear_refs")
    before = memory.resident_bytes()
    for bomb in bombs:
        path = zipped(tmp_path / "t.pt", {"data.pkl": bomb})
        try:
            TorchFile(path)
        except DataError as error:
            assert "its pickle is broken" in str(error)  # noqa: PT017 - some are only empty
    assert memory.peak_bytes() - before < 1 << 26


def test_a_compressed_file_is_refused_before_it_grows(tmp_path):
    path = zipped(tmp_path / "t.pt", {"data.pkl": b"\0" * 1_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="is compressed or encrypted; torch does neither"):
        TorchFile(path)


def test_a_pickle_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "LONGEST_PICKLE", 20)
    with pytest.raises(DataError, match=r"data\.pkl has \d+ bytes; 20 are allowed"):
        TorchFile(saved(tmp_path, {"a": torch.ones(1)}))


def test_other_files_are_refused_with_their_name(tmp_path):
    path = tmp_path / "t.pt"
    with pytest.raises(DataError, match=r"t\.pt: cannot be read \(No such file"):
        TorchFile(path)
    for data, says in [
        (b"", "begins with other bytes"),
        (b"\x89PNG....", "begins with other bytes"),
        (b"PK\x03\x04" + b"\0" * 100, "it is no whole zip file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=says):
            TorchFile(path)
    with pytest.raises(DataError, match=r"without one data\.pkl"):
        TorchFile(zipped(path, {"other": b""}))
    with pytest.raises(DataError, match="has the byte order big"):
        TorchFile(zipped(path, {"data.pkl": b"N.", "byteorder": b"big"}))


def test_a_file_of_the_old_format_is_refused_with_the_way_out(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"before torch 1\.6\. Save it again: torch\.save\(torch\.load\(old"):
        TorchFile(path)


def state():
    return {"a": torch.arange(6, dtype=torch.float32), "b": torch.arange(6).reshape(2, 3).t(), "c": torch.ones(9)[2:5]}


def everything(path):
    file = TorchFile(path)
    return {name: data_of(file, name) for name in file.content}


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = saved(tmp_path, state()).read_bytes()
    for length in range(len(data)):
        (tmp_path / "t.pt").write_bytes(data[:length])
        with pytest.raises(DataError):
            everything(tmp_path / "t.pt")


def test_a_changed_bit_is_an_error_of_the_file_or_changes_nothing(tmp_path):
    data, generator = saved(tmp_path, state()).read_bytes(), random.Random(1)
    expected, refused = everything(tmp_path / "t.pt"), 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << generator.randrange(8)
        (tmp_path / "t.pt").write_bytes(changed)
        try:
            assert everything(tmp_path / "t.pt") == expected, position
        except DataError:
            refused += 1
    assert refused > 500


def test_a_file_without_checksums_is_read_and_its_changed_bits_are_no_other_errors(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        data, generator = saved(tmp_path, state()).read_bytes(), random.Random(2)
    finally:
        torch.serialization.set_crc32_options(before)
    everything(tmp_path / "t.pt")
    refused = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 2, 5))):
            changed[generator.randrange(600)] = generator.randrange(256)
        (tmp_path / "t.pt").write_bytes(changed)
        try:
            everything(tmp_path / "t.pt")
        except DataError:
            refused += 1
        except TypeError:  # the content is no dict of tensors any more, which is the caller's to see
            pass
    assert refused > 500


def test_a_checkpoint_is_read_without_torch(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(3)})
    code = (
        "import sys\nfrom packedbag.io.torch_file import TorchFile\nfile = TorchFile(sys.argv[1])\n"
        "print(file.dense(file.content['a']).array().tolist(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.0, 1.0, 1.0] False\n"
