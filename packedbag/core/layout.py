"""How a row of D one-bit weights lies in memory, and the conversions to and from that layout.

Column ``j`` is bit ``j % 32`` (least significant first) of word ``j // 32``. Bit 1 is +1 / True, bit 0 is
-1 / False. Tail bits (columns >= D) are always 0. Bytes are little-endian.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from packedbag.core.errors import ArgumentError, DtypeError, ShapeError

BITS_PER_WORD = 32
# The Philox counter holds column // 8 in 16 bits (DESIGN: random numbers), which bounds a row.
MAX_EMBEDDING_DIM = 8 * 65536

Words = npt.NDArray[np.uint32]


def words_per_row(embedding_dim: int) -> int:
    """Return W, the uint32 words that hold a row of ``embedding_dim`` weights.

    >>> words_per_row(100)
    4
    """
    return -(-embedding_dim // BITS_PER_WORD)


def tail_mask(embedding_dim: int) -> int:
    """Return the mask of the columns that exist in a row's last word.

    >>> hex(tail_mask(36))
    '0xf'
    """
    used = (embedding_dim - 1) % BITS_PER_WORD + 1
    return (1 << used) - 1


def check_embedding_dim(embedding_dim: int) -> int:
    """Return ``embedding_dim`` as an int, or raise `ArgumentError`."""
    if isinstance(embedding_dim, bool) or not hasattr(embedding_dim, "__index__"):
        raise ArgumentError("embedding_dim", repr(embedding_dim), "an integer")
    dim = int(embedding_dim)
    if not 1 <= dim <= MAX_EMBEDDING_DIM:
        raise ArgumentError("embedding_dim", dim, f"in 1..{MAX_EMBEDDING_DIM}")
    return dim


def view_words(words: Any, dtype: str) -> Any:
    """Return the same bytes as ``dtype`` ("uint32" or "int32"); NumPy or torch, no copy.

    Users see uint32 everywhere. Inside torch the bytes are an int32 buffer, because torch has neither shifts,
    index_put nor gloo collectives for uint32, and DDP refuses a module with a uint32 buffer.
    """
    if isinstance(words, np.ndarray):
        return words.view(np.dtype(dtype))
    return words.view(getattr(sys.modules["torch"], dtype))


def check_words(words: Any, embedding_dim: int, name: str = "words") -> None:
    """Raise unless ``words`` (NumPy or torch) is a table (V, W) of 32-bit words for ``embedding_dim``."""
    if str(words.dtype).removeprefix("torch.") not in ("uint32", "int32"):
        raise DtypeError(name, words.dtype, "uint32 (or int32, the same bytes)", "packedbag.pack(x) makes words.")
    width = words_per_row(embedding_dim)
    if words.ndim != 2 or words.shape[1] != width:
        raise ShapeError(
            name, tuple(words.shape), f"(V, {width}) for embedding_dim={embedding_dim}", "32 weights are one word."
        )


def pack_array(x: npt.NDArray[Any]) -> Words:
    """Pack bools, or the signs of floats (>= 0 is +1), (..., D) -> (..., W) uint32."""
    if x.ndim == 0 or x.shape[-1] < 1:
        raise ShapeError("x", x.shape, "(..., D) with D >= 1")
    if x.dtype == np.bool_:
        bits = x
    elif np.issubdtype(x.dtype, np.floating):
        if np.isnan(x).any():
            raise ArgumentError("x", "NaN somewhere", "free of NaN", "A NaN has no sign to keep.")
        bits = x >= 0
    else:
        raise DtypeError("x", x.dtype, "bool or floating point", "Pass x > 0 or x.astype(bool) to pack integers.")
    width = words_per_row(x.shape[-1])
    packed = np.zeros((*x.shape[:-1], 4 * width), np.uint8)
    as_bytes = np.packbits(bits, axis=-1, bitorder="little")
    packed[..., : as_bytes.shape[-1]] = as_bytes
    return packed.view("<u4").astype(np.uint32, copy=False)


def unpack_array(words: npt.NDArray[Any], embedding_dim: int) -> npt.NDArray[np.bool_]:
    """Unpack (..., W) uint32 or int32 words -> bool (..., embedding_dim)."""
    dim = check_embedding_dim(embedding_dim)
    if words.dtype not in (np.uint32, np.int32):
        raise DtypeError("words", words.dtype, "uint32 (or int32, the same bytes)")
    if words.ndim == 0 or words.shape[-1] != words_per_row(dim):
        raise ShapeError("words", words.shape, f"(..., {words_per_row(dim)}) for embedding_dim={dim}")
    as_bytes = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=-1, count=dim, bitorder="little")
    return bits.view(np.bool_)
