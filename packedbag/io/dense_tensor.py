"""`DenseTensor`: a tensor beside packed tables, whose bytes are read when they are written somewhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import DataError, DtypeError

#: Bytes that are read, converted or written at once. Pieces of 4 MB stay in the cache between these.
PIECE = 1 << 22
#: Bytes of an element, by safetensors' name of its dtype.
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
#: NumPy's dtypes; it has none for the others.
NUMPY_DTYPES = {
    "BOOL": "|b1",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "UI" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    "C64": "<c8",
}
NAMES = {np.dtype(dtype): name for name, dtype in NUMPY_DTYPES.items()}

Pieces = Iterator[bytes | memoryview]


@dataclass(frozen=True)
class DenseTensor:
    """A tensor of a file or of memory.

    Attributes:
        dtype: safetensors' name, a key of `ITEM_BYTES`: it has names for dtypes that NumPy lacks, such as BF16.
        shape: its shape.
        pieces: yields its bytes, little-endian and in C order, from the start; a few MB at once.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Pieces] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> DenseTensor:
        """Return an array, which is not copied.

        Raises:
            DtypeError: safetensors has no such dtype.
        """
        dtype = array.dtype.newbyteorder("<")
        if dtype not in NAMES:
            raise DtypeError("array", array.dtype, "bool, integer, float or complex64 of at most 8 bytes")

        def pieces() -> Pieces:
            flat = np.ascontiguousarray(array).reshape(-1)
            step = PIECE // dtype.itemsize
            for start in range(0, flat.size, step):
                yield flat[start : start + step].astype(dtype, copy=False).view(np.uint8).data

        return cls(NAMES[dtype], array.shape, pieces)

    @classmethod
    def in_file(cls, dtype: str, shape: tuple[int, ...], path: Path, start: int) -> DenseTensor:
        """Return the tensor that begins at byte ``start`` of a file."""
        size = math.prod(shape) * ITEM_BYTES[dtype]
        return cls(dtype, shape, lambda: file_pieces(path, start, size))

    def array(self) -> npt.NDArray[Any]:
        """Return it as a new array.

        Raises:
            DtypeError: NumPy has no such dtype.
        """
        if self.dtype not in NUMPY_DTYPES:
            raise DtypeError("the tensor", self.dtype, "one that NumPy has", "Use its pieces, or read it with torch.")
        data = bytearray()
        for piece in self.pieces():
            data += piece
        return np.frombuffer(data, NUMPY_DTYPES[self.dtype]).reshape(self.shape)


def file_pieces(path: Path, start: int, size: int, step: int = PIECE) -> Iterator[bytes]:
    """Yield ``size`` bytes of a file from byte ``start`` on, ``step`` at once.

    Raises:
        DataError: the file cannot be opened, or has become shorter.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from None
    with file:
        file.seek(start)
        while size:
            piece = file.read(min(size, step))
            if not piece:
                raise DataError(path, None, f"ends {size} bytes early", "It was cut short: copy it again.")
            size -= len(piece)
            yield piece
