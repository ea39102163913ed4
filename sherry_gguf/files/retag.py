"""Other type ids over the same bytes: a file for the readers that know its type under another number.

Nothing but four bytes for each tensor changes, and general.file_type where it is the type's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.gguf_file import GgufFile, open_gguf
from sherry_gguf.files.header import FILE_TYPE_KEY, UINT32, Header
from sherry_gguf.files.identify import find_types, spans, with_ids
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.table import tensor_types
from sherry_gguf.formats.tensor_type import TensorType


@dataclass(frozen=True)
class Target:
    """A type, and the id that its tensors are to have."""

    tensor_type: TensorType
    type_id: int

    @property
    def file_type(self) -> int | None:
        """general.file_type of files whose tensors have the id."""
        return self.tensor_type.seen.get(self.type_id, self.tensor_type.file_type)


def targets() -> dict[str, Target]:
    """What ``retag`` can be asked for: ids of types that stock llama.cpp has not, where their file type is known."""
    found = {}
    for tensor_type in tensor_types():
        for type_id in () if tensor_type.is_stock else sorted(tensor_type.ids):
            target = Target(tensor_type, type_id)
            if target.file_type is not None:
                native = "" if tensor_type.format_version is None else "-native"
                found[f"{type_id}{native}"] = target
    return found


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


def retag(path: Path, to: str, outfile: Path | None = None, *, in_place: bool = False, force: bool = False) -> Retagged:
    """Give all tensors of a type the id ``to`` names, a key of ``targets()``; which have the type, their bytes tell.

    outfile: default beside the file, named after it and the id. in_place: the file itself, replaced at once by a
    complete one of the same permissions. Nothing is written where there is nothing to do. Raises SherryError, and
    then leaves all files as they were, if the file is a part of a split model, if the bytes do not fit, or if the
    result would be read as something else.
    """
    wanted = targets()[to]
    type_name, type_id = wanted.tensor_type.name, wanted.type_id
    file = open_gguf(path)
    file.require_whole()
    file.require_types()
    members = [tensor for tensor in file.tensors if tensor.type is wanted.tensor_type]
    if not members:
        raise _none(file, wanted)
    ids = {tensor.name: type_id for tensor in members if tensor.info.type_id != type_id}
    if not ids:
        return Retagged(None, type_name, type_id, 0, len(members))
    _require_readable(with_ids(file.header, ids), file.tensors)

    target = outfile or path.with_name(f"{path.stem}-id{type_id}{path.suffix}")
    if in_place:
        target = path.resolve() if path.is_symlink() else path  # a link stays one
    require_free(target, force or in_place, () if in_place else (path,))
    with temporary_beside(target) as temporary:
        shutil.copyfile(path, temporary)
        _write(temporary, file, ids, wanted)
        _require_readable(open_gguf(temporary).header, file.tensors)
        rename_durably(temporary, target, force or in_place)
    return Retagged(target, type_name, type_id, len(ids), len(members) - len(ids))


def _write(path: Path, file: GgufFile, ids: dict[str, int], wanted: Target) -> None:
    changed = [tensor.info for tensor in file.tensors if tensor.name in ids]
    with path.open("r+b") as out:
        for info in changed:
            out.seek(info.id_at)
            out.write(wanted.type_id.to_bytes(4, "little"))
        entry = file.header.entries.get(FILE_TYPE_KEY)
        old = {_file_type_with(info.type_id) for info in changed}
        if entry is None or entry.type_id != UINT32 or entry.value not in old or wanted.file_type is None:
            return
        out.seek(entry.value_start)
        out.write(wanted.file_type.to_bytes(4, "little"))


def _file_type_with(type_id: int) -> int:
    """What general.file_type is beside this id in published files; the id itself where none is known."""
    known = (t.seen.get(type_id) for t in tensor_types())
    return next((file_type for file_type in known if file_type is not None), type_id)


def _require_readable(header: Header, tensors: Sequence[FileTensor]) -> None:
    """SherryError unless the file with its new ids is read as the same types."""
    for old, new in zip(tensors, find_types(header), strict=True):
        if new.type is not old.type:
            raise SherryError(
                f"{header.path}: {old.name}: {old.type_name or 'its type'} would not be found "
                f"again: {new.problem or 'no type is known by its new id'}; nothing was written"
            )


def _none(file: GgufFile, wanted: Target) -> SherryError:
    """Why no tensor gets the id: named after the one that comes nearest."""
    said = f"{file.path}: no tensor is {wanted.tensor_type.name}, so none gets id {wanted.type_id}"
    claimed = {type_id for t in tensor_types() if not t.is_stock for type_id in t.ids}
    near = [
        tensor
        for tensor in file.tensors
        if (tensor.ternary_type and not tensor.ternary_type.is_stock) or tensor.info.type_id in claimed
    ]
    if not near:
        return SherryError(said, Way.INSPECT(file.path))
    tensor = near[0]
    block_types = [wanted.tensor_type, tensor.type] if tensor.type else [wanted.tensor_type]
    return SherryError(f"{said}; {tensor.name} has {spans(tensor.info, file.header, block_types)}")
