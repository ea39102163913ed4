"""A GGUF with other types for some of its tensors: all other bytes of header and data stay as they are.

gguf-py's writer is not used: it would write metadata anew, from values, and knows the ids of its own table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from sherry_gguf.files.codecs import U8, rows_of
from sherry_gguf.files.header import FILE_TYPE_KEY, MAGIC, UINT32, Header
from sherry_gguf.files.types import Type, Typed
from sherry_gguf.format import VERSION, VERSION_KEY

Replacement = tuple[int, Type]  # type id, type


def rewrite(
    header: Header,
    found: Sequence[Typed],
    replaced: Mapping[str, Replacement],
    entries: Sequence[bytes],
    pack: Callable[[Typed], Iterator[U8]],
    path: Path,
    progress: bool = False,
) -> None:
    """Write the file of ``header`` to ``path``, which exists.

    replaced  tensor name -> its new type; pack gives the bytes of such a tensor, some rows at a time
    entries   the metadata
    """
    with path.open("wb") as file:
        file.write(_head(header, found, replaced, entries))
        for typed in tqdm(found, desc="Writing", unit="tensor", disable=not progress):
            _pad(file, header)
            for rows in pack(typed) if typed.tensor.name in replaced else [kept_bytes(typed, header)]:
                file.write(rows.data)
        _pad(file, header)


def kept_bytes(typed: Typed, header: Header) -> U8:
    """uint8[n]: a tensor's bytes; of an unknown type, those up to the next tensor."""
    return rows_of(typed, header).reshape(-1) if typed.type else header.data[typed.tensor.start : typed.tensor.stop]


def new_entries(header: Header, file_type: int | None, has_sherry: bool) -> list[bytes]:
    """The metadata's own bytes, with another general.file_type if one is given.

    sherry.format_version goes where the last SHERRY tensor went, and comes with the first.
    """
    entries = []
    for entry in header.entries.values():
        raw = header.data[entry.start : entry.stop].tobytes()
        if entry.key == VERSION_KEY and not has_sherry:
            continue
        if entry.key == FILE_TYPE_KEY and file_type is not None and entry.type_id == UINT32:
            raw = raw[: entry.value_start - entry.start] + file_type.to_bytes(4, "little")
        entries.append(raw)
    if has_sherry and VERSION_KEY not in header.entries:
        key = VERSION_KEY.encode()
        numbers = len(key).to_bytes(8, "little"), UINT32.to_bytes(4, "little"), VERSION.to_bytes(4, "little")
        entries.append(numbers[0] + key + numbers[1] + numbers[2])
    return entries


def _head(
    header: Header, found: Sequence[Typed], replaced: Mapping[str, Replacement], entries: Sequence[bytes]
) -> bytes:
    """All before the data, the tensors' names and shapes as they are."""
    infos = bytearray(header.data[header.infos_start : header.infos_stop].tobytes())
    offset = 0
    for typed in found:
        type_id, n_bytes = typed.tensor.type_id, typed.n_bytes
        if typed.tensor.name in replaced:
            type_id, kind = replaced[typed.tensor.name]
            n_bytes = kind.size(typed.tensor) or 0
        at = typed.tensor.id_at - header.infos_start
        infos[at : at + 12] = type_id.to_bytes(4, "little") + offset.to_bytes(8, "little")
        offset += header.padded(n_bytes)
    counts = len(found).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    return MAGIC + header.version.to_bytes(4, "little") + counts + b"".join(entries) + infos


def _pad(file: BinaryIO, header: Header) -> None:
    file.write(bytes(-file.tell() % header.alignment))
