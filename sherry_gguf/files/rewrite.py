"""A GGUF with other types for some of its tensors: all other bytes of header and data stay as they are.

gguf-py's writer is not used: it would write metadata anew, from values, and knows the ids of its own table alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from sherry_gguf.files.gguf_file import GgufFile
from sherry_gguf.files.header import FILE_TYPE_KEY, MAGIC, UINT32, Header
from sherry_gguf.formats.table import VERSION_KEY
from sherry_gguf.formats.tensor_type import TensorType


def rewrite(
    file: GgufFile,
    changed: Collection[str],
    wanted: TensorType,
    entries: Sequence[bytes],
    path: Path,
    progress: bool = False,
) -> None:
    """Write ``file`` to ``path``, which exists, with the tensors named ``changed`` in the type ``wanted``.

    entries: the metadata. Memory: a few times a chunk.
    """
    with path.open("wb") as out:
        out.write(_head(file, changed, wanted, entries))
        for tensor in tqdm(file.tensors, desc="Writing", unit="tensor", disable=not progress):
            _pad(out, file.header)
            if tensor.name in changed:
                for planes in tensor.chunks():
                    out.write(wanted.pack(planes.weights).data)
            else:
                out.write(tensor.stored.data)
        _pad(out, file.header)


def new_entries(header: Header, file_type: int | None, version: int | None) -> list[bytes]:
    """The metadata's own bytes, with another general.file_type if one is given.

    version: of sherry.format_version, None where nothing in the file needs it. The key goes with the last tensor that
    does, comes with the first, and has the number that the file's types need.
    """
    entries = []
    for entry in header.entries.values():
        raw = header.data[entry.start : entry.stop].tobytes()
        if entry.key == VERSION_KEY and version is None:
            continue
        value = {FILE_TYPE_KEY: file_type, VERSION_KEY: version}.get(entry.key)
        if value is not None and entry.type_id == UINT32:
            raw = raw[: entry.value_start - entry.start] + value.to_bytes(4, "little")
        entries.append(raw)
    if version is not None and VERSION_KEY not in header.entries:
        key = VERSION_KEY.encode()
        numbers = len(key).to_bytes(8, "little"), UINT32.to_bytes(4, "little"), version.to_bytes(4, "little")
        entries.append(numbers[0] + key + numbers[1] + numbers[2])
    return entries


def _head(file: GgufFile, changed: Collection[str], wanted: TensorType, entries: Sequence[bytes]) -> bytes:
    """All before the data, the tensors' names and shapes as they are."""
    header = file.header
    infos = bytearray(header.data[header.infos_start : header.infos_stop].tobytes())
    offset = 0
    for tensor in file.tensors:
        type_id, n_bytes = tensor.info.type_id, tensor.n_bytes
        if tensor.name in changed:
            type_id, n_bytes = wanted.type_id, wanted.size(tensor.info.shape) or 0
        at = tensor.info.id_at - header.infos_start
        infos[at : at + 12] = type_id.to_bytes(4, "little") + offset.to_bytes(8, "little")
        offset += header.padded(n_bytes)
    counts = len(file.tensors).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    return MAGIC + header.version.to_bytes(4, "little") + counts + b"".join(entries) + infos


def _pad(out: BinaryIO, header: Header) -> None:
    out.write(bytes(-out.tell() % header.alignment))
