"""The same weights in another ternary type, tensor by tensor: exact, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sherry_gguf import blocks, stq1_0
from sherry_gguf import format as sherry
from sherry_gguf.errors import SherryError
from sherry_gguf.exact import BY_NAME, EXACT_TYPES, ExactType
from sherry_gguf.files.codecs import F32, TERNARY, U8, Chunk, read_chunks
from sherry_gguf.files.header import FILE_TYPE_KEY, Header, read_header
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.files.rewrite import kept_bytes, new_entries, rewrite
from sherry_gguf.files.types import (
    SHERRY,
    STQ1_0,
    STQ1_0_FILE_TYPES,
    Type,
    Typed,
    find_types,
    require_types,
    upstream_types,
)
from sherry_gguf.gguf_types import use_exact_q4_0
from sherry_gguf.weight_check import count_changed, holds

OUTTYPES = tuple(kind.name.lower() for kind in EXACT_TYPES)
# type id and packer; gguf-py may have other types under these ids one day
_SHERRY_TYPES: dict[str, tuple[int, Callable[[F32], U8]]] = {
    SHERRY.name: (sherry.TYPE_ID, blocks.pack_exact),
    STQ1_0.name: (stq1_0.TYPE_ID, stq1_0.pack_exact),
}
_LARGEST_SCALE = float(np.finfo(np.float16).max)  # Q4_0 reaches 8 times that
_MAY_BE_DENSE = "Q4_0"  # a type of any weights: tensors of it that are not ternary are left alone


@dataclass(frozen=True)
class Requantized:
    """outfile: None where there was nothing to do. tensors: how many, of all the types that were."""

    outfile: Path | None
    type_name: str
    tensors: int
    was: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.outfile is None:
            return f"nothing to do: all {self.tensors} ternary tensors are {self.type_name}"
        return (
            f"wrote {self.outfile}: {self.tensors} tensors, {' and '.join(self.was)} before, are {self.type_name} now; "
            f"verified: every weight is as it was, and so are all other tensors and metadata"
        )


def requantize(
    file: Path, outtype: str, outfile: Path | None = None, *, force: bool = False, progress: bool = False
) -> Requantized:
    """Write ``file`` with all its ternary tensors in ``outtype``, one of OUTTYPES.

    outfile: default beside the file, named after it and the type. Metadata and other tensors keep their bytes, but for
    general.file_type where it is that of a type that goes, and sherry.format_version, which belongs to SHERRY. Nothing
    is written where there is nothing to do. Raises SherryError, and then leaves all files as they were, if outtype
    would change a weight. Memory: a few times 4 M weights, or a row.
    """
    kind = BY_NAME[outtype.upper()]
    wanted = Type(kind.name, kind.block, kind.block_bytes)
    use_exact_q4_0()
    header = read_header(file)
    found = require_types(header)
    ternary = [typed for typed in tqdm(found, desc="Reading", disable=not progress) if _is_ternary(typed, header)]
    if not ternary:
        raise SherryError(f"{file}: has no ternary tensors; `sherry-gguf inspect` shows the types")
    members = [typed for typed in ternary if typed.type != wanted]
    if not members:
        return Requantized(None, kind.name, len(ternary))
    target = outfile or file.with_name(f"{file.stem}-{kind.name}{file.suffix}")
    require_free(target, force)
    _require_exact(members, kind, header, progress)

    replaced = {typed.tensor.name: (_type_id(kind), wanted) for typed in members}
    has_sherry = kind.name == SHERRY.name or any(t.type == SHERRY and t.tensor.name not in replaced for t in found)
    entries = new_entries(header, _new_file_type(header, members, kind), has_sherry)

    def pack(typed: Typed) -> Iterator[U8]:
        return (_pack(chunk, kind) for chunk in read_chunks(typed, header))

    with temporary_beside(target) as temporary:
        rewrite(header, found, replaced, entries, pack, temporary, progress)
        _verify(header, found, temporary, set(replaced), entries, progress)
        rename_durably(temporary, target)
    was = tuple(sorted({typed.type.name for typed in members if typed.type}))
    return Requantized(target, kind.name, len(members), was)


def _is_ternary(typed: Typed, header: Header) -> bool:
    """Whether the tensor takes part; SherryError for one of a ternary type that has more magnitudes than one."""
    if typed.type is None or typed.type.name not in TERNARY or not typed.tensor.weights:
        return False
    others = 0
    for chunk in read_chunks(typed, header):
        t = np.abs(chunk.t.reshape(*chunk.d.shape, -1))
        others += int(np.count_nonzero((t != t.max(axis=-1, keepdims=True)) & (t != 0)))
        if others and typed.type.name == _MAY_BE_DENSE:
            return False
        if not np.isfinite(chunk.d).all() or (typed.type.name in _SHERRY_TYPES and np.signbit(chunk.d).any()):
            raise SherryError(f"{_place(typed, header)} has scales that no weights have; it is damaged")
    if others:
        raise SherryError(
            f"{_place(typed, header)}: {others:,} of {typed.tensor.weights:,} weights are neither 0 nor of their "
            f"block's magnitude, so it is not ternary; requantize the original model instead"
        )
    return True


def _require_exact(members: Sequence[Typed], kind: ExactType, header: Header, progress: bool) -> None:
    """SherryError if the type would change a weight: the first tensor by name, all by number, and the way out."""
    members = list(members)
    changed = [
        _count_changed(typed, kind, header)
        for typed in tqdm(members, desc="Checking", unit="tensor", disable=not progress)
    ]
    if not any(changed):
        return
    first, n = next((typed, n) for typed, n in zip(members, changed, strict=True) if n)
    k = first.tensor.row
    if k % kind.block:
        what = f"rows of {k} weights do not fit {kind.name}"
    else:
        what = f"at least {n:,} of {first.tensor.weights:,} weights do not fit {kind.name} and would change"
    fitting = [
        other.name.lower()
        for other in EXACT_TYPES
        if other is not kind and all(_holds(typed, other, header) for typed in members)
    ]
    raise SherryError(
        f"{_place(first, header)}: {what}: {kind}; "
        f"{np.count_nonzero(changed)} of {len(members)} tensors do not fit, with {sum(changed):,} of "
        f"{sum(typed.tensor.weights for typed in members):,} weights; "
        + (f"all fit --outtype {' or '.join(fitting)}" if fitting else "no one type holds all of them")
    )


def _count_changed(typed: Typed, kind: ExactType, header: Header) -> int:
    """The weights of a tensor that the type changes at least: all where rows are no whole blocks."""
    if typed.tensor.row % kind.block:
        return typed.tensor.weights
    chunks = (chunk.weights for chunk in read_chunks(typed, header))
    return sum(
        max(count_changed(weights, kind), int(np.count_nonzero(np.abs(weights) > _LARGEST_SCALE)))
        for weights in chunks
        if not _fits(weights, kind)
    )


def _fits(weights: F32, kind: ExactType) -> bool:
    return holds(weights, kind) and bool(np.abs(weights).max() <= _LARGEST_SCALE)


def _holds(typed: Typed, kind: ExactType, header: Header) -> bool:
    return all(_fits(chunk.weights, kind) for chunk in read_chunks(typed, header))


def _place(typed: Typed, header: Header) -> str:
    return f"{header.path}: {typed.tensor.name}"


def _pack(chunk: Chunk, kind: ExactType) -> U8:
    """uint8[rows, bytes of a row]"""
    import gguf

    if kind.name in _SHERRY_TYPES:
        return _SHERRY_TYPES[kind.name][1](chunk.weights)
    return np.ascontiguousarray(gguf.quants.quantize(chunk.weights, gguf.GGMLQuantizationType[kind.name]))


def _type_id(kind: ExactType) -> int:
    if kind.name in _SHERRY_TYPES:
        return _SHERRY_TYPES[kind.name][0]
    return next(type_id for type_id, known in upstream_types().items() if known.name == kind.name)


def _new_file_type(header: Header, members: Sequence[Typed], kind: ExactType) -> int | None:
    """None where general.file_type is not that of a type that goes."""
    theirs = {
        number for typed in members if typed.type for number in _file_types(typed.type.name, typed.tensor.type_id)
    }
    return _file_types(kind.name)[0] if header.value(FILE_TYPE_KEY) in theirs else None


def _file_types(name: str, type_id: int | None = None) -> list[int]:
    """What general.file_type is where most tensors are of a type: ours first, then that of others who use the id."""
    import gguf

    if name == STQ1_0.name:
        return [stq1_0.FILE_TYPE, *(number for key, number in STQ1_0_FILE_TYPES.items() if key == type_id)]
    return [sherry.FILE_TYPE if name == SHERRY.name else int(gguf.LlamaFileType[f"MOSTLY_{name}"])]


def _verify(
    header: Header, found: list[Typed], written: Path, replaced: set[str], entries: list[bytes], progress: bool
) -> None:
    """SherryError unless the file, read back from its bytes, has the same weights, and all else as it was."""
    new = read_header(written)
    if [new.data[e.start : e.stop].tobytes() for e in new.entries.values()] != entries:
        raise SherryError(f"{written}: its metadata is not what was written")
    pairs = zip(found, find_types(new), strict=True)
    for old_typed, new_typed in tqdm(pairs, desc="Verifying", unit="tensor", total=len(found), disable=not progress):
        old_tensor, new_tensor = old_typed.tensor, new_typed.tensor
        same = (old_tensor.name, old_tensor.shape) == (new_tensor.name, new_tensor.shape) and not new_typed.problem
        if same and old_tensor.name in replaced:
            same = new_typed.type is not None and _same_weights(old_typed, header, new_typed, new)
        elif same:
            same = old_typed.type == new_typed.type and np.array_equal(
                kept_bytes(old_typed, header), kept_bytes(new_typed, new)[: old_typed.n_bytes]
            )
        if not same:
            said = new_typed.problem or "it reads back as something else"
            raise SherryError(f"{header.path}: {old_tensor.name} cannot be written so: {said}")


def _same_weights(old: Typed, old_header: Header, new: Typed, new_header: Header) -> bool:
    chunks = zip(read_chunks(old, old_header), read_chunks(new, new_header), strict=True)
    return all(np.array_equal(a.weights, b.weights) for a, b in chunks)
