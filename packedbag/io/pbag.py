"""``.pbag``: one header page, then the words, aligned: a file that any language can map.

docs/formats.md specifies it; `LAYOUT` is the same table for `struct`.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from packedbag.core.errors import ArgumentError, DataError
from packedbag.core.layout import words_per_row
from packedbag.core.value_codes import CODES
from packedbag.io.atomic import replacing
from packedbag.io.dense_tensor import DenseTensor
from packedbag.io.description import BIT_ORDER, READ_VERSIONS, SCALES, VERSIONS, describe, described, mapped, only
from packedbag.io.stored import Arrays, StoredTable, as_json, from_json
from packedbag.io.watch import write_tensor
from packedbag.table import PackedTable

#: Its bytes beyond text show a copy that changed line ends or dropped a high bit.
MAGIC = b"PBAG\r\n\x1a\x80"
#: Bytes of the header, which are those of a page: the words behind it can be mapped by themselves.
PAGE = 4096
#: magic; version; crc32 of the page, taken with 0 here; V; D; W; bits per value; scale: 0 none, 1 table, 2 row; first
#: byte of the words, and of the scale, 0 without one; bytes of the file; sha256 of words and scale; bytes of the JSON
#: text that follows, which has "name" and "metadata".
LAYOUT = struct.Struct("<8s I I Q I I I I Q Q Q 32s I")
CRC_AT = 12
#: In a file of version 2, between that and the text: how bits make values, 0 their mean, 1 as binary numbers.
CODE = struct.Struct("<I")
#: Scales begin at a multiple of this.
ALIGNMENT = 64


def save(path: str | os.PathLike[str], tables: Mapping[str, PackedTable]) -> None:
    """Write one table in one atomic step.

    Args:
        path: the file to create or replace.
        tables: one, by its name. Its ``metadata`` must be JSON, and with the name fit into what the header page has
            left, 3.9 kB.

    Raises:
        ArgumentError: there are several tables, or the metadata are no JSON, or too long.
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    name, table = only(tables, ".pbag")
    said = describe(table, name)
    text = as_json({"metadata": said["metadata"], "name": name}, "metadata").encode()
    code = b"" if said["version"] == 1 else CODE.pack(CODES.index(table.code))
    room = PAGE - LAYOUT.size - len(code)
    if len(text) > room:
        raise ArgumentError("metadata", f"{len(text)} bytes of JSON with the name", f"at most {room}", "Shorten them.")
    kind = SCALES.index(said["scale"])
    words_end = PAGE + table.words.nbytes
    scale_at = words_end + -words_end % ALIGNMENT if kind else 0
    end = words_end if table.scale is None else scale_at + table.scale.nbytes
    shape = table.num_embeddings, table.embedding_dim, table.words.shape[1], table.bits_per_value
    places, sha256 = (PAGE, scale_at, end), bytes.fromhex(said["sha256"])
    header = LAYOUT.pack(MAGIC, said["version"], 0, *shape, kind, *places, sha256, len(text))
    page = bytearray((header + code + text).ljust(PAGE, b"\0"))
    struct.pack_into("<I", page, CRC_AT, zlib.crc32(page))
    with replacing(path) as file:
        file.write(page)
        write_tensor(file, DenseTensor.of(table.words))
        if table.scale is not None:
            file.write(b"\0" * (scale_at - words_end))
            write_tensor(file, DenseTensor.of(table.scale))


def read(path: str | os.PathLike[str]) -> dict[str, StoredTable]:
    """Return what the header of a ``.pbag`` file says; the words are not read.

    Raises:
        DataError: the file is missing, cut short, damaged in its header, of a later version, or no ``.pbag`` file.
    """
    target = Path(path)
    try:
        with target.open("rb") as file:
            page = file.read(PAGE)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})") from None
    if page[: len(MAGIC)] != MAGIC:
        raise DataError(path, None, "is no .pbag file: it begins with other bytes")
    if len(page) < PAGE:
        raise DataError(path, None, f"has {size} bytes; a header alone has {PAGE}", "It was cut short: copy it again.")
    _, version, crc, rows, dim, width, bits, kind, words_at, scale_at, end, sha256, length = LAYOUT.unpack_from(page)
    if version not in VERSIONS:
        problem = f"has format version {version}; this packedbag reads {READ_VERSIONS}"
        raise DataError(path, None, problem, "Upgrade packedbag.")
    if zlib.crc32(page[:CRC_AT] + bytes(4) + page[CRC_AT + 4 :]) != crc:
        raise DataError(path, None, "its header is damaged: the checksum differs", "Copy or export it again.")
    text_at = LAYOUT.size + (CODE.size if version > 1 else 0)
    (code,) = CODE.unpack_from(page, LAYOUT.size) if version > 1 else (0,)
    if kind >= len(SCALES) or code >= len(CODES) or length > PAGE - text_at:
        problem = f"claims scale kind {kind}, code {code} and {length} bytes of text"
        raise DataError(path, None, problem, "It is no table.")
    text = from_json(target, page[text_at : text_at + length], "the text of its header")
    shape, scale_shape = (rows, width), () if kind == 1 else (rows,)

    def arrays(mmap: bool) -> Arrays:
        words = mapped(target, "<u4", words_at, shape, mmap)
        return words, mapped(target, "<f4", scale_at, scale_shape, mmap=False) if kind else None

    said = {
        "version": version,
        "bit_order": BIT_ORDER,
        "num_embeddings": rows,
        "embedding_dim": dim,
        "scale": SCALES[kind],
    }
    said |= {"bits_per_value": bits, "code": CODES[code], "sha256": sha256.hex()}
    said |= {"name": text.get("name"), "metadata": text.get("metadata")}
    stored = described(target, said, arrays)
    words_end = words_at + 4 * rows * width
    expected = scale_at + (0, 4, 4 * rows)[kind] if kind else words_end
    if (
        width != words_per_row(dim)
        or words_at < PAGE
        or words_at % 4
        or scale_at % 4
        or (kind and scale_at < words_end)
    ):
        problem = f"claims {width} words a row of {dim}, words at byte {words_at} and a scale at {scale_at}"
        raise DataError(path, None, problem, "It is no table.")
    if end != size:
        raise DataError(path, None, f"has {size} bytes; its header says {end}", "It was cut short: copy it again.")
    if end != expected:
        raise DataError(path, None, f"has {size} bytes; what its header lists takes {expected}", "It is no table.")
    return {stored.name: stored}
