"""Write what `torch.save` would write, tensors piece by piece: they need not exist as a whole."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from packedbag.core.errors import ArgumentError, DtypeError
from packedbag.io.atomic import replacing
from packedbag.io.dense_tensor import ITEM_BYTES, PIECE, DenseTensor, Pieces
from packedbag.io.torch_pickle import DTYPES, STORAGES

if TYPE_CHECKING:
    import torch

#: torch's dtypes, and its classes of storages, by safetensors' name; newer dtypes have no class of their own.
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
CLASSES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
#: What the entries are below; torch takes any name.
FOLDER = "archive"
VERSION = b"3\n"
#: Storages begin at a multiple of this, as torch's do, so that they can be mapped.
ALIGNMENT = 64
#: Of an entry: its header, the sizes that a zip file of any length has behind the name, and the start of the filling.
LOCAL_HEADER, ZIP64_FIELD, FIELD_HEADER = 30, 20, struct.Struct("<HH")
#: The kind that torch gives to the field which fills up to the alignment: "FB".
FILLING = 0x4246


def write_torch(
    path: str | os.PathLike[str], content: Any, *, wrote: Callable[[int], object] = lambda nbytes: None
) -> None:
    """Write ``content`` to ``path`` in one atomic step, for `torch.load`, also with ``weights_only`` and ``mmap``.

    Args:
        path: the file to create or replace. Equal contents make equal bytes.
        content: a state dict, or anything else that pickle takes. A `DenseTensor` in it is written as a torch tensor,
            and one that occurs twice is written once, as are tensors that are the same memory. Tensors that are a
            part of a larger one are written without the rest, and without gradients.
        wrote: called with the number of bytes after each piece of a tensor.

    Raises:
        ArgumentError: a tensor is sparse, quantized or on the meta device. DtypeError: it has an unusual dtype.
        OSError: the file cannot be written; an older file of that name is unchanged.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        written = _Entries(file, archive)
        written.add("data.pkl", iter([pickled.getvalue()]))
        written.add("byteorder", iter([sys.byteorder.encode()]))
        for key, tensor in enumerate(pickler.tensors):
            written.add(f"data/{key}", tensor.pieces(), wrote)
        written.add("version", iter([VERSION]))
        written.add(".data/serialization_id", iter([written.identity().encode()]))


def dense_of(tensor: torch.Tensor) -> DenseTensor:
    """Return a torch tensor, which is not copied, on any device.

    Raises:
        ArgumentError: it is sparse, quantized or on the meta device. DtypeError: the format has no such dtype.
    """
    import torch

    whole = tensor.detach()
    if whole.layout != torch.strided or whole.is_quantized or whole.is_meta:
        kind = "quantized" if whole.is_quantized else "on the meta device" if whole.is_meta else str(whole.layout)
        raise ArgumentError("a tensor of the source", kind, "dense, and on a CPU or GPU")
    dtype = DTYPES.get(str(whole.dtype).removeprefix("torch."))
    if dtype is None:
        raise DtypeError("a tensor of the source", whole.dtype, ", ".join(DTYPES))
    # A view that is conjugated or negated on reading becomes what is read.
    whole = whole.resolve_conj().resolve_neg()

    def pieces() -> Pieces:
        flat = whole.reshape(-1) if whole.is_contiguous() else whole
        row = ITEM_BYTES[dtype] * max(1, flat[:1].numel())
        for start in range(0, len(flat), max(1, PIECE // row)):
            part = flat[start : start + max(1, PIECE // row)].cpu().contiguous()
            # A contiguous tensor of one element may have any stride, which a view of its bytes must not.
            yield part.as_strided((part.numel(),), (1,)).view(torch.uint8).numpy().data

    return DenseTensor(dtype, tuple(whole.shape), pieces)


class _Storage(NamedTuple):
    """What the pickle says of the storage of a tensor."""

    dtype: str
    key: str
    numel: int


class _Pickler(pickle.Pickler):
    """Writes tensors as torch does; `tensors` are those whose bytes must follow, in the order of their keys."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[DenseTensor] = []
        self._keys: dict[int, int] = {}
        self._seen: dict[object, DenseTensor] = {}

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            dense = dense_of(obj)
            place = (obj.data_ptr(), obj.dtype, obj.shape, obj.stride(), obj.device) if obj.numel() else id(obj)
            obj = self._seen.setdefault(place, dense)
        if not isinstance(obj, DenseTensor):
            return NotImplemented
        import torch._utils as builders

        key = self._keys.get(id(obj))
        if key is None:
            key = self._keys[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        old = obj.dtype in CLASSES
        storage = _Storage(obj.dtype, str(key), obj.nbytes // (ITEM_BYTES[obj.dtype] if old else 1))
        described: tuple[Any, ...] = (storage, 0, obj.shape, _strides(obj.shape), False, OrderedDict())
        if old:
            return builders._rebuild_tensor_v2, described
        import torch

        return builders._rebuild_tensor_v3, (*described, getattr(torch, TORCH_DTYPES[obj.dtype]))

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        import torch

        return "storage", getattr(torch, CLASSES.get(obj.dtype, "UntypedStorage")), obj.key, "cpu", obj.numel


class _Entries:
    """Adds entries to a zip file, aligned and with their checksums."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile) -> None:
        self._file, self._archive = file, archive

    def add(self, name: str, pieces: Pieces, wrote: Callable[[int], object] = lambda nbytes: None) -> None:
        """Write an entry of any length, which need not be known."""
        entry = zipfile.ZipInfo(f"{FOLDER}/{name}")  # of 1980: the same content makes the same bytes
        header = LOCAL_HEADER + len(entry.filename) + FIELD_HEADER.size + ZIP64_FIELD
        filling = -(self._file.tell() + header) % ALIGNMENT
        entry.extra = FIELD_HEADER.pack(FILLING, filling) + b"Z" * filling
        with self._archive.open(entry, "w", force_zip64=True) as target:
            for piece in pieces:
                target.write(piece)
                wrote(len(piece))

    def identity(self) -> str:
        """Return forty digits that tell files of different contents apart, as torch does."""
        checksums = [f"{entry.filename} {entry.CRC}" for entry in self._archive.infolist()]
        return f"{int(hashlib.sha256('/'.join(checksums).encode()).hexdigest(), 16) % 10**40:040d}"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * max(length, 1))
    return tuple(reversed(strides)) if shape else ()
