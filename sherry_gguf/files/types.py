"""Which type a tensor of a file really has.

Ids up to 42 are llama.cpp's, as the pin numbers them. STQ1_0 was written under 42, which is Q2_0 now, under 43 and
under 253; other private ids may be SHERRY's, 512 is. So the bytes decide, once for all tensors of a file that share an
id: a type fits if the **padded** span of every tensor is what the type needs. Up to alignment 64, Q2_0 and STQ1_0 never
fit the same tensor; where tensors are small and the alignment is large both may, and then nothing can tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from sherry_gguf import format as sherry
from sherry_gguf import stq1_0
from sherry_gguf.errors import SherryError
from sherry_gguf.files.header import Header, Tensor

LAST_UPSTREAM_ID = 42
STQ1_0_IDS = (42, 43, 253)
STQ1_0_FILE_TYPES = {42: 41, 43: 42}  # general.file_type in the revisions of llama.cpp PR 22836 that had these ids


@dataclass(frozen=True)
class Type:
    """name as gguf-py has it; block: weights of a row that are block_bytes in the file."""

    name: str
    block: int
    block_bytes: int

    def size(self, tensor: Tensor) -> int | None:
        """Bytes of the tensor in this type, without padding; None where its rows are no whole blocks."""
        return None if tensor.row % self.block else tensor.weights // self.block * self.block_bytes

    def fits(self, tensor: Tensor, header: Header) -> bool:
        """Whether the tensor's span is that of this type. A file's end need not be padded."""
        size = self.size(tensor)
        if size is None:
            return False
        return tensor.span == header.padded(size) or (tensor.span == size and tensor.stop == len(header.data))


SHERRY = Type(sherry.TYPE_NAME, sherry.BLOCK, sherry.BLOCK_BYTES)
STQ1_0 = Type(stq1_0.TYPE_NAME, stq1_0.BLOCK, stq1_0.BLOCK_BYTES)


@cache
def upstream_types() -> dict[int, Type]:
    """id -> type, of those that the pinned llama.cpp has without the patch."""
    import gguf

    return {
        int(qtype): Type(qtype.name, *sizes)
        for qtype, sizes in gguf.GGML_QUANT_SIZES.items()
        if qtype <= LAST_UPSTREAM_ID
    }


@dataclass(frozen=True)
class Typed:
    """A tensor and its type: None if that is not known, and then ``problem`` tells why, unless the id is nobody's.

    A problem beside a type is a gap behind the tensor's bytes, which ggml refuses.
    """

    tensor: Tensor
    type: Type | None
    problem: str | None = None

    @property
    def n_bytes(self) -> int:
        """Without padding, but for an unknown type."""
        size = None if self.type is None else self.type.size(self.tensor)
        return self.tensor.span if size is None else size


def find_types(header: Header) -> list[Typed]:
    """The tensors of the file with their types, in its order.

    What contradicts itself is told in ``problem``. Raises SherryError for a tensor whose bytes are not all there.
    """
    by_id: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in header.tensors:
        by_id[tensor.type_id].append(tensor)
    found = {}
    for type_id, tensors in by_id.items():
        for typed in _decide(type_id, tensors, header):
            found[typed.tensor.name] = typed
    return [found[tensor.name] for tensor in header.tensors]


def require_types(header: Header) -> list[Typed]:
    """``find_types``; SherryError for the first tensor with a problem."""
    found = find_types(header)
    for typed in found:
        if typed.problem:
            raise SherryError(f"{header.path}: {typed.tensor.name}: {typed.problem}")
    return found


def with_ids(header: Header, ids: dict[str, int]) -> Header:
    """The header as it would be with other type ids: tensor name -> id."""
    tensors = [replace(tensor, type_id=ids.get(tensor.name, tensor.type_id)) for tensor in header.tensors]
    return replace(header, tensors=tensors)


def spans(tensor: Tensor, header: Header, types: Sequence[Type]) -> str:
    """What the tensor's bytes are, and what they would be: for messages."""
    return f"id {tensor.type_id}, {tensor.span:,} bytes with padding: " + ", ".join(
        f"no row fits {kind.name}"
        if (size := kind.size(tensor)) is None
        else f"{kind.name} needs {header.padded(size):,}"
        for kind in types
    )


def _decide(type_id: int, tensors: Sequence[Tensor], header: Header) -> list[Typed]:
    upstream = upstream_types().get(type_id)
    if upstream is not None and type_id not in STQ1_0_IDS:
        return [_known(tensor, upstream, header) for tensor in tensors]
    claims = _claims(type_id)
    fitting = [kind for kind in claims if all(kind.fits(tensor, header) for tensor in tensors)]
    if type_id == LAST_UPSTREAM_ID and len(fitting) > 1:
        said = "nothing tells Q2_0 from STQ1_0, as both need as many bytes"
        return [Typed(tensor, None, f"{said} ({spans(tensor, header, claims)})") for tensor in tensors]
    is_claimed = type_id in (*STQ1_0_IDS, sherry.TYPE_ID)
    if not is_claimed and all(STQ1_0.fits(tensor, header) for tensor in tensors):
        fitting = []  # too small to tell sizes apart: then nothing speaks for SHERRY
    if fitting:
        return [Typed(tensor, fitting[0]) for tensor in tensors]
    return _contradicting(tensors, claims, header) if is_claimed else [Typed(tensor, None) for tensor in tensors]


def _claims(type_id: int) -> list[Type]:
    """What the id may stand for, the likeliest first."""
    if type_id == LAST_UPSTREAM_ID:
        return [upstream_types()[type_id], STQ1_0]
    return [STQ1_0, SHERRY] if type_id in STQ1_0_IDS else [SHERRY]


def _known(tensor: Tensor, kind: Type, header: Header) -> Typed:
    size = kind.size(tensor)
    if size is None:
        return Typed(tensor, None, f"rows of {tensor.row} weights are no whole {kind.name} blocks of {kind.block}")
    _require_bytes(tensor, size, kind.name, header)
    return Typed(tensor, kind, None if kind.fits(tensor, header) else f"a gap ({spans(tensor, header, [kind])})")


def _contradicting(tensors: Sequence[Tensor], claims: Sequence[Type], header: Header) -> list[Typed]:
    found = []
    shown = (upstream_types()[LAST_UPSTREAM_ID], STQ1_0, SHERRY)
    for kind in claims:
        misfits = [tensor for tensor in tensors if not kind.fits(tensor, header)]
        if len(misfits) == 1 < len(tensors) and misfits[0].stop == len(header.data):
            _require_bytes(misfits[0], kind.size(misfits[0]) or 0, kind.name, header)
    for tensor in tensors:
        _require_bytes(tensor, min(kind.size(tensor) or 0 for kind in shown), "the smallest type of that id", header)
        alone = [kind.name for kind in claims if kind.fits(tensor, header)]
        if alone:
            said = f"is {' or '.join(alone)}, and others of that id are not"
        else:
            said = "its bytes are not of its id's type"
        found.append(Typed(tensor, None, f"{said} ({spans(tensor, header, shown)})"))
    return found


def _require_bytes(tensor: Tensor, size: int, name: str, header: Header) -> None:
    if size > tensor.span:
        what = "is it truncated?" if tensor.stop == len(header.data) else "the next tensor begins too early"
        raise SherryError(
            f"{header.path}: {tensor.name} has {tensor.span:,} bytes, and needs {size:,} as {name}; {what}"
        )
