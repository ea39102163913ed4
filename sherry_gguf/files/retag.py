"""Other type ids over the same bytes: a file for the readers that know its type under another number.

Nothing but four bytes for each tensor changes, and general.file_type where it is the type's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf import format as sherry
from sherry_gguf.errors import SherryError
from sherry_gguf.files.header import FILE_TYPE_KEY, UINT32, Header, read_header
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.files.types import (
    SHERRY,
    STQ1_0,
    STQ1_0_FILE_TYPES,
    STQ1_0_IDS,
    Type,
    Typed,
    find_types,
    require_types,
    spans,
    with_ids,
)

TARGETS: dict[str, tuple[Type, int]] = {
    "42": (STQ1_0, 42),
    "43": (STQ1_0, 43),
    "512-native": (SHERRY, sherry.TYPE_ID),
}


@dataclass(frozen=True)
class Retagged:
    """outfile: None where there was nothing to do. changed, unchanged: tensors of the type."""

    outfile: Path | None
    type_name: str
    type_id: int
    changed: int
    unchanged: int

    def __str__(self) -> str:
        if self.outfile is None:
            return f"nothing to do: all {self.unchanged} {self.type_name} tensors have id {self.type_id}"
        return f"wrote {self.outfile}: {self.changed} {self.type_name} tensors have id {self.type_id} now"


def retag(file: Path, to: str, outfile: Path | None = None, *, in_place: bool = False, force: bool = False) -> Retagged:
    """Give all tensors of a type the id ``to`` names, a key of TARGETS; which have the type, their bytes tell.

    outfile: default beside the file, named after it and the id. in_place: the file itself, replaced at once by a
    complete one of the same permissions. Nothing is written where there is nothing to do. Raises SherryError, and
    then leaves all files as they were, if the bytes do not fit, or if the result would be read as something else.
    """
    wanted, type_id = TARGETS[to]
    header = read_header(file)
    found = require_types(header)
    members = [typed.tensor for typed in found if typed.type == wanted]
    if not members:
        raise SherryError(_none(header, found, wanted, type_id))
    ids = {tensor.name: type_id for tensor in members if tensor.type_id != type_id}
    if not ids:
        return Retagged(None, wanted.name, type_id, 0, len(members))
    _require_readable(with_ids(header, ids), found)

    target = outfile or file.with_name(f"{file.stem}-id{type_id}{file.suffix}")
    if in_place:
        target = file.resolve() if file.is_symlink() else file  # a link stays one
    require_free(target, force or in_place)
    with temporary_beside(target) as temporary:
        shutil.copyfile(file, temporary)
        if in_place:
            _keep_permissions(target, temporary)
        _write(temporary, header, ids, type_id)
        _require_readable(read_header(temporary), found)
        rename_durably(temporary, target)
    return Retagged(target, wanted.name, type_id, len(ids), len(members) - len(ids))


def _write(path: Path, header: Header, ids: dict[str, int], type_id: int) -> None:
    with path.open("r+b") as file:
        for tensor in header.tensors:
            if tensor.name in ids:
                file.seek(tensor.id_at)
                file.write(type_id.to_bytes(4, "little"))
        entry = header.entries.get(FILE_TYPE_KEY)
        old_ids = {tensor.type_id for tensor in header.tensors if tensor.name in ids}
        if entry is None or entry.type_id != UINT32 or entry.value not in map(_file_type, old_ids):
            return
        file.seek(entry.value_start)
        file.write(_file_type(type_id).to_bytes(4, "little"))


def _file_type(type_id: int) -> int:
    """What general.file_type is where most tensors have this id; SHERRY's is its id."""
    return STQ1_0_FILE_TYPES.get(type_id, type_id)


def _require_readable(header: Header, found: Sequence[Typed]) -> None:
    """SherryError unless the file with its new ids is read as the same types."""
    for old, new in zip(found, find_types(header), strict=True):
        if new.type != old.type:
            raise SherryError(
                f"{header.path}: {old.tensor.name}: {old.type.name if old.type else 'its type'} would not be found "
                f"again: {new.problem or 'no type is known by its new id'}; nothing was written"
            )


def _none(header: Header, found: Sequence[Typed], wanted: Type, type_id: int) -> str:
    """Why no tensor gets the id: named after the one that comes nearest."""
    other = {SHERRY: STQ1_0, STQ1_0: SHERRY}[wanted]
    near = [typed for typed in found if typed.type == other or typed.tensor.type_id in STQ1_0_IDS]
    said = f"{header.path}: no tensor is {wanted.name}, so none gets id {type_id}"
    if not near:
        return f"{said}; `sherry-gguf inspect` shows the types"
    typed = near[0]
    kinds = [wanted, typed.type] if typed.type else [wanted]
    return f"{said}; {typed.tensor.name} has {spans(typed.tensor, header, kinds)}"


def _keep_permissions(old: Path, new: Path) -> None:
    shutil.copymode(old, new)
    status = old.stat()
    with suppress(PermissionError):  # a file of someone else's becomes ours, as with any editor
        os.chown(new, status.st_uid, status.st_gid)
