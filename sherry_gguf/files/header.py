"""The header of a GGUF file, version 2 or 3: metadata and tensors, each with its place in the file.

    "GGUF", version u32, tensors u64, entries u64
    an entry   key, type u32, value; an array is its elements' type u32, their number u64, the elements
    a tensor   name, dimensions u32, each u64, type id u32, offset u64 from where the data begins
    data       from the next multiple of general.alignment (32 if absent), as are all offsets

A string is its length u64 and that many bytes. The file is mapped into memory, and nothing that it says about itself is
believed: numbers are held against the bytes that are left before anything is done with them.

Source: ggml's docs/gguf.md; what it leaves open is as in gguf.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, naming
from sherry_gguf.formats.table import VERSION, VERSION_KEY

U8 = npt.NDArray[np.uint8]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
FILE_TYPE_KEY = "general.file_type"
UINT32 = 4

_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_LEAST_ENTRY = 8 + 4 + 1  # bytes: an empty key, a type, a value of one byte
_LEAST_TENSOR = 8 + 4 + 4 + 8
_MOST_DIMENSIONS = 4
_MOST_WEIGHTS = 2**63 - 1
_LONGEST_NAME = 65535  # of keys, by the specification


@dataclass(frozen=True)
class Entry:
    """Metadata: where its bytes are in the file, from the key on and from the value on; value: None for an array."""

    key: str
    type_id: int
    value: Any
    start: int
    value_start: int
    stop: int


@dataclass(frozen=True)
class TensorInfo:
    """shape: as the file has it, the row's length first. start, stop: of its data in the file, with the padding.

    id_at: where the type id is in the file; the offset follows it.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    id_at: int
    start: int
    stop: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def span(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """infos_start, infos_stop: where the tensors' names and offsets are; data: the whole file, uint8[size], mapped."""

    path: Path
    version: int
    alignment: int
    entries: dict[str, Entry]
    tensors: list[TensorInfo]
    infos_start: int
    infos_stop: int
    data_start: int
    data: U8 = field(repr=False)

    def value(self, key: str) -> Any:
        """None if there is no such entry, or it is an array."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    def padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment


def read_header(path: Path) -> Header:
    """Raises SherryError for what is no GGUF file, a damaged one, or one that llama.cpp could not read either.

    A file whose sherry.format_version is larger than this package knows is refused as well.
    """
    with naming(str(path)):
        if not path.is_file():
            raise SherryError("is no file" if path.exists() else "no such file")
        if not path.stat().st_size:
            raise SherryError("is empty, no GGUF file")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        return _read(path, data, _Cursor(data.data))


class _Cursor:
    """Reads on from ``at``, and never beyond the end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def left(self) -> int:
        return len(self.data) - self.at

    def skip(self, n: int) -> None:
        if n > self.left():
            raise SherryError(f"ends in its header: {n:,} bytes are missing at byte {self.at:,}; is it truncated?")
        self.at += n

    def take(self, layout: str) -> Any:
        start = self.at
        self.skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, start)[0]

    def count(self, what: str, least: int) -> int:
        """A number of things of at least ``least`` bytes each, all of which must be in what is left."""
        n = int(self.take("<Q"))
        if n * least > self.left():
            raise SherryError(
                f"says at byte {self.at - 8:,} that {n:,} {what} follow, but has {self.left():,} bytes left; "
                f"is it damaged or truncated?"
            )
        return n

    def string(self) -> str:
        """As it may be shown in a line: what is not printable is escaped."""
        n = self.count("bytes of a string", 1)
        raw = bytes(self.data[self.at : self.at + n])
        self.at += n
        text = raw.decode("utf-8", errors="backslashreplace")
        return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")

    def name(self) -> str:
        start = self.at
        name = self.string()
        if self.at - start - 8 > _LONGEST_NAME:
            raise SherryError(f"has a name of {self.at - start - 8:,} bytes at byte {start:,}; it is damaged")
        return name


def _read(path: Path, data: U8, cursor: _Cursor) -> Header:
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        raise SherryError(f"is no GGUF file: it begins with {magic!r}")
    cursor.skip(4)
    version = _version(cursor.take("<I"))
    n_tensors = cursor.count("tensors", _LEAST_TENSOR)
    n_entries = cursor.count("entries of metadata", _LEAST_ENTRY)

    entries: dict[str, Entry] = {}
    for _ in range(n_entries):
        entry = _entry(cursor)
        if entry.key in entries:
            raise SherryError(f"has {entry.key} twice")
        entries[entry.key] = entry
    _require_known_format(entries)
    alignment = _alignment(entries)

    infos_start = cursor.at
    infos = [_info(cursor) for _ in range(n_tensors)]
    infos_stop = cursor.at
    data_start = -(-infos_stop // alignment) * alignment
    tensors = _place(infos, data_start, alignment, len(data))
    return Header(path, version, alignment, entries, tensors, infos_start, infos_stop, data_start, data)


def _version(version: int) -> int:
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        raise SherryError("is big-endian; only little-endian GGUF files can be read")
    raise SherryError(f"is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read")


def _entry(cursor: _Cursor) -> Entry:
    start = cursor.at
    key = cursor.name()
    with naming(key):
        type_id = cursor.take("<I")
        value_start = cursor.at
        return Entry(key, type_id, _value(cursor, type_id), start, value_start, cursor.at)


def _value(cursor: _Cursor, type_id: int) -> Any:
    """A scalar's or a string's value; None for an array, which is passed over."""
    if type_id in _SCALARS:
        return cursor.take(_SCALARS[type_id])
    if type_id == _STRING:
        return cursor.string()
    if type_id != _ARRAY:
        raise SherryError(f"has the unknown value type {type_id}; the file is damaged")
    element = cursor.take("<I")
    if element in _SCALARS:
        size = struct.calcsize(_SCALARS[element])
        cursor.skip(cursor.count("elements", size) * size)
    elif element == _STRING:
        for _ in range(cursor.count("strings", 8)):
            cursor.skip(cursor.count("bytes of a string", 1))
    else:
        raise SherryError(f"is an array of value type {element}, which GGUF readers do not know")
    return None


def _require_known_format(entries: dict[str, Entry]) -> None:
    entry = entries.get(VERSION_KEY)
    if entry is None:
        return
    if entry.type_id != UINT32:
        raise SherryError(f"{VERSION_KEY} is no uint32; the file is damaged")
    if entry.value > VERSION:
        raise SherryError(
            f"{VERSION_KEY} is {entry.value}, this sherry-gguf reads versions up to {VERSION}; install a newer one"
        )


def _alignment(entries: dict[str, Entry]) -> int:
    entry = entries.get(ALIGNMENT_KEY)
    if entry is None:
        return _DEFAULT_ALIGNMENT
    if entry.type_id != UINT32 or entry.value == 0 or entry.value & (entry.value - 1):
        raise SherryError(f"{ALIGNMENT_KEY} is {entry.value}, no uint32 that is a power of two; the file is damaged")
    return int(entry.value)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    """name, shape, type id, where that is, offset"""
    name = cursor.name()
    with naming(name):
        n_dims = cursor.take("<I")
        if n_dims > _MOST_DIMENSIONS:
            raise SherryError(f"has {n_dims} dimensions, ggml's tensors at most {_MOST_DIMENSIONS}")
        shape = tuple(int(cursor.take("<Q")) for _ in range(n_dims))
        if math.prod(shape) > _MOST_WEIGHTS or any(n > _MOST_WEIGHTS for n in shape):
            raise SherryError(f"has the shape {list(shape)}, which is too large; the file is damaged")
        id_at = cursor.at
        return name, shape, cursor.take("<I"), id_at, cursor.take("<Q")


def _place(
    infos: list[tuple[str, tuple[int, ...], int, int, int]], data_start: int, alignment: int, size: int
) -> list[TensorInfo]:
    """Tensors with their spans: each reaches to the next one's offset, the last to the end of the file."""
    names = set()
    offsets = [offset for *_, offset in infos]
    for i, (name, _, _, _, offset) in enumerate(infos):
        if name in names:
            raise SherryError(f"has two tensors named {name}")
        names.add(name)
        if i == 0 and offset:
            raise SherryError(f"{name} is the first tensor, but has offset {offset:,} instead of 0")
        if i and offset < offsets[i - 1]:
            raise SherryError(f"{name} has offset {offset:,}, before that of {infos[i - 1][0]}; the file is damaged")
        if offset % alignment:
            raise SherryError(f"{name} has offset {offset:,}, no multiple of the alignment {alignment}")
        if data_start + offset > size:
            raise SherryError(f"{name} begins {data_start + offset - size:,} bytes beyond the end; is it truncated?")
    stops = [*offsets[1:], size - data_start] if infos else []
    return [
        TensorInfo(name, shape, type_id, id_at, data_start + offset, data_start + stop)
        for (name, shape, type_id, id_at, offset), stop in zip(infos, stops, strict=True)
    ]
