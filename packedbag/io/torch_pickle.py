"""The pickle of a torch checkpoint, read for its structure: nothing in it is called or imported.

Names that build tensors stand for functions of this module, which note what they are told; every other class or
function becomes a `Foreign`, which does nothing. So a checkpoint with objects of its author's own is read like any
other, whoever wrote it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

#: safetensors' names of dtypes, by torch's, and by the classes of storages that older pickles name.
DTYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}


class StorageRef(NamedTuple):
    """A storage of the file: its dtype (safetensors' name), its key, and its elements."""

    dtype: str
    key: str
    numel: int


class TensorRef(NamedTuple):
    """A tensor as the pickle describes it; nothing in it is checked.

    Attributes:
        dtype: safetensors' name.
        storage: which holds its elements.
        offset: of the first one, in elements.
        shape, strides: in elements.
        embedding_dim: D, where these are the words of packed bools that packedbag saved; else None.
    """

    dtype: str
    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    embedding_dim: int | None = None


class Foreign:
    """Stands for an object of a class that is not known here."""

    __slots__ = ()
    name = "object"

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Foreign:
        """Stand for what a function that was kept would have returned."""
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Drop what the class would have kept, as the others do."""

    extend = add = update = append


class StateDict(dict[Any, Any]):
    """An ``OrderedDict``, whose attributes are dropped, but for what a state dict says of its modules.

    Attributes:
        metadata: its ``_metadata``; nothing in it is checked.
    """

    __slots__ = ("metadata",)

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self.metadata: object = None

    def __setstate__(self, state: object) -> None:
        self.metadata = state.get("_metadata") if isinstance(state, dict) else None


def load_structure(data: bytes) -> Any:
    """Return what the pickle of a checkpoint holds, with a `TensorRef` for each tensor.

    Args:
        data: ``data.pkl`` of the checkpoint, from anybody.

    Raises:
        Exception: of any class; the pickle is cut short or broken.
    """
    return _Unpickler(io.BytesIO(data)).load()


# The unpickler in C reserves memory for as many entries as a number in the pickle says. This one has a dict for them.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    # It reserves as many bytes as it is told, before it looks whether they are there. torch does not write it.
    del dispatch[pickle.BYTEARRAY8[0]]

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return StateDict
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in BUILDERS:
            return BUILDERS[module, name]
        return type("Foreign", (Foreign,), {"__slots__": (), "name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> StorageRef:
        kind, dtype, key, _, numel = pid
        if [type(part) for part in (kind, dtype, key, numel)] != [str, str, str, int] or kind != "storage":
            raise pickle.UnpicklingError("something kept beside it is no storage")
        return StorageRef(dtype, key, numel)


def _tensor(storage: object, offset: Any, shape: Any, strides: Any, *_: object) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise pickle.UnpicklingError("a tensor has no storage")
    return TensorRef(storage.dtype, storage, offset, shape, strides)


def _tensor_of_dtype(
    storage: object, offset: Any, shape: Any, strides: Any, grad: object, hooks: object, dtype: object, *_: object
) -> TensorRef:
    if not isinstance(dtype, str):
        raise pickle.UnpicklingError("a tensor has a dtype that is not known here")
    return _tensor(storage, offset, shape, strides)._replace(dtype=dtype)


def _parameter(data: object, *_: object) -> object:
    return data


def _subclass(build: Callable[..., object], kind: object, args: Any, state: object) -> object:
    return build(*args)


def _packed_bools(words: object, embedding_dim: object) -> TensorRef:
    if not isinstance(words, TensorRef) or words.dtype not in ("U32", "I32") or type(embedding_dim) is not int:
        raise pickle.UnpicklingError("packed bools have no words")
    return words._replace(dtype="U32", embedding_dim=embedding_dim)


#: What the names that build tensors stand for.
BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("packedbag.adapters.safe_loading", "rebuild"): _packed_bools,
}
