"""The same weights in another ternary type, tensor by tensor: exact, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.files.gguf_file import GgufFile, open_gguf
from sherry_gguf.files.header import FILE_TYPE_KEY
from sherry_gguf.files.i2_s import I2sTensor, with_layout
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.files.rewrite import new_entries, rewrite
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.i2_s import FILE_TYPE, I2_S, Layout
from sherry_gguf.formats.table import format_version
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.weights import refusal
from sherry_gguf.weights.fit import holders, misfit


@dataclass(frozen=True)
class Requantized:
    """outfile: None where there was nothing to do. tensors: how many, of all the types that were.

    rounding: how far the scales of I2_S are from float32's, by their own size; None without such tensors
    """

    outfile: Path | None
    type_name: str
    tensors: int
    was: tuple[str, ...] = ()
    rounding: float | None = None

    def __str__(self) -> str:
        if self.outfile is None:
            return f"nothing to do: all {self.tensors} ternary tensors are {self.type_name}"
        return (
            f"wrote {self.outfile}: {self.tensors} tensors, {' and '.join(self.was)} before, are {self.type_name} now; "
            f"verified: every weight is as it was, and so are all other tensors and metadata{self._rounded()}"
        )

    def _rounded(self) -> str:
        if self.rounding is None:
            return ""
        return f"; I2_S's scales were rounded to fp16, by {self.rounding:.1e} at most (half an fp16 ulp: 4.9e-04)"


def requantize(
    path: Path,
    wanted: TensorType,
    outfile: Path | None = None,
    *,
    i2s_layout: Layout | None = None,
    force: bool = False,
    progress: bool = False,
) -> Requantized:
    """Write the file with all its ternary tensors in the type ``wanted``.

    i2s_layout: how the bytes of I2_S tensors lie, which a file does not tell.
    outfile: default beside the file, named after it and the type. Metadata and other tensors keep their bytes, but for
    general.file_type where it is that of a type that goes, and sherry.format_version, which belongs to Sherry's own
    types. Nothing is written where there is nothing to do. Raises SherryError, and then leaves all files as they were,
    if ``wanted`` would change a weight, or the file is a part of a split model. Memory: a few times 4 M weights, or a
    row.
    """
    file = open_gguf(path)
    file.require_whole()
    file.require_types()
    file = with_layout(file, i2s_layout)
    ternary = [tensor for tensor in tqdm(file.tensors, desc="Reading", disable=not progress) if _is_ternary(tensor)]
    if not ternary:
        raise _no_ternary(file)
    members = [tensor for tensor in ternary if tensor.type is not wanted]
    if not members:
        return Requantized(None, wanted.name, len(ternary))
    target = outfile or path.with_name(f"{path.stem}-{wanted.name}{path.suffix}")
    require_free(target, force, (path,))
    _require_exact(members, wanted, progress)

    changed = {tensor.name for tensor in members}
    kept = [t.ternary_type for t in file.tensors if t.ternary_type and t.name not in changed]
    entries = new_entries(file.header, _new_file_type(file, members, wanted), format_version([wanted, *kept]))
    with temporary_beside(target) as temporary:
        rewrite(file, changed, wanted, entries, temporary, progress)
        _verify(file, temporary, changed, entries, progress)
        rename_durably(temporary, target, force)
    was = tuple(sorted({tensor.type_name for tensor in members if tensor.type_name}))
    rounding = [tensor.rounding() for tensor in members if isinstance(tensor, I2sTensor)]
    return Requantized(target, wanted.name, len(members), was, max(rounding, default=None))


def _is_ternary(tensor: FileTensor) -> bool:
    """Whether the tensor takes part; SherryError for one of a ternary type that has more magnitudes than one."""
    if isinstance(tensor, I2sTensor):
        return tensor.info.weights > 0
    tensor_type = tensor.ternary_type
    if tensor_type is None or not tensor.info.weights:
        return False
    others = 0
    for planes in tensor.chunks():
        t, scales = planes.without_damage().folded()
        in_blocks = np.abs(t.reshape(*scales.shape, -1))
        others += int(np.count_nonzero((in_blocks != in_blocks.max(axis=-1, keepdims=True)) & (in_blocks != 0)))
        if others and not tensor_type.only_ternary:
            return False
        if not planes.is_finite or (tensor_type.codes is not None and np.signbit(planes.d).any()):
            raise SherryError(f"{tensor.place} has scales that no weights have; it is damaged")
    if others:
        raise SherryError(
            f"{tensor.place}: {others:,} of {tensor.info.weights:,} weights are neither 0 nor of their "
            f"block's magnitude, so it is not ternary; requantize the original model instead"
        )
    return True


def _no_ternary(file: GgufFile) -> SherryError:
    said = f"{file.path}: has no ternary tensors"
    sums = [t for t in file.tensors if t.ternary_type and t.ternary_type.planes > 1 and t.info.weights]
    if sums:
        folded = [planes.without_damage().folded() for planes in sums[0].chunks()]
        others = sum(int(np.count_nonzero(np.abs(t) > 1)) for t, _ in folded)
        said += (
            f"; {others:,} of {sums[0].info.weights:,} weights of {sums[0].name}, which is {sums[0].type_name}, are "
            f"neither 0 nor of their block's magnitude"
        )
    return SherryError(said, Way.INSPECT(file.path))


def _require_exact(members: Sequence[FileTensor], wanted: TensorType, progress: bool) -> None:
    """SherryError if the type would change a weight, with the types that would not."""
    matrices = [tensor.matrix() for tensor in members]
    checked = tqdm(matrices, desc="Checking", unit="tensor", disable=not progress)
    found = [bad for bad in (misfit(matrix, wanted) for matrix in checked) if bad]
    if not found:
        return
    by_name = holders(matrices)
    of_all = [t.outtype for t in by_name[matrices[0].name] if all(t in held for held in by_name.values())]
    ways = [Way.ALL_FIT(" or ".join(of_all)) if of_all else Way.NO_TYPE()]
    with naming(str(members[0].header.path)):
        raise refusal.misfits(found, wanted, len(matrices), sum(matrix.weights for matrix in matrices), ways)


def _new_file_type(file: GgufFile, members: Sequence[FileTensor], wanted: TensorType) -> int | None:
    """None where general.file_type is not that of a type that goes."""
    theirs: set[int | None] = set()
    for tensor in members:
        if tensor.type is I2_S:
            theirs.add(FILE_TYPE)
        if tensor.ternary_type is not None:
            theirs |= {tensor.ternary_type.file_type, tensor.ternary_type.seen.get(tensor.info.type_id)}
    return wanted.file_type if file.value(FILE_TYPE_KEY) in theirs - {None} else None


def _verify(file: GgufFile, written: Path, changed: set[str], entries: list[bytes], progress: bool) -> None:
    """SherryError unless the file, read back from its bytes, has the same weights, and all else as it was."""
    new = open_gguf(written)
    if [new.header.data[e.start : e.stop].tobytes() for e in new.header.entries.values()] != entries:
        raise SherryError(f"{written}: its metadata is not what was written")
    pairs = list(zip(file.tensors, new.tensors, strict=True))
    for old_tensor, new_tensor in tqdm(pairs, desc="Verifying", unit="tensor", disable=not progress):
        a, b = old_tensor.info, new_tensor.info
        same = (a.name, a.shape) == (b.name, b.shape) and not new_tensor.problem
        if same and a.name in changed:
            same = new_tensor.ternary_type is not None and _same_weights(old_tensor, new_tensor)
        elif same:
            # the bytes of an unknown type reach to the next tensor, and so have the padding of the new file
            stored = new_tensor.stored[: old_tensor.n_bytes]
            same = old_tensor.type is new_tensor.type and np.array_equal(old_tensor.stored, stored)
        if not same:
            said = new_tensor.problem or "it reads back as something else"
            raise SherryError(f"{old_tensor.place} cannot be written so: {said}")


def _same_weights(old: FileTensor, new: FileTensor) -> bool:
    return all(np.array_equal(a.weights, b.weights) for a, b in zip(old.chunks(), new.chunks(), strict=True))
