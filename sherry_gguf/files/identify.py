"""Which type a tensor of a file really has.

Ids up to 42 are llama.cpp's, as the pin numbers them; bitnet.cpp has types of its own under 36, 38 and 39. STQ1_0 was
written under 42, which is Q2_0 now, under 43 and under 253; other private ids may be SHERRY's, 512 is. So the bytes
decide, once for all tensors of a file that share an id: a type fits if the **padded** span of every tensor is what the
type needs. Up to alignment 64, Q2_0 and STQ1_0 never fit the same tensor; where tensors are small and the alignment is
large both may, and then nothing can tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from sherry_gguf.errors import SherryError
from sherry_gguf.files.header import Header, TensorInfo
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.i2_s import BITNET_TYPES, I2_S
from sherry_gguf.formats.table import LAST_UPSTREAM_ID, known_as, named, tensor_types
from sherry_gguf.formats.tensor_type import BlockType


@cache
def upstream_types() -> dict[int, BlockType]:
    """id -> type, of those that the pinned llama.cpp has without the patch."""
    import gguf

    return {
        int(qtype): named(qtype.name) or BlockType(qtype.name, int(qtype), *sizes)
        for qtype, sizes in gguf.GGML_QUANT_SIZES.items()
        if qtype <= LAST_UPSTREAM_ID
    }


def find_types(header: Header) -> list[FileTensor]:
    """The tensors of the file with their types, in its order.

    What contradicts itself is told in ``problem``. Raises SherryError for a tensor whose bytes are not all there.
    """
    by_id: dict[int, list[TensorInfo]] = defaultdict(list)
    for tensor in header.tensors:
        by_id[tensor.type_id].append(tensor)
    found = {}
    for type_id, tensors in by_id.items():
        for typed in _decide(type_id, tensors, header):
            found[typed.name] = typed
    return [found[tensor.name] for tensor in header.tensors]


def with_ids(header: Header, ids: dict[str, int]) -> Header:
    """The header as it would be with other type ids: tensor name -> id."""
    tensors = [replace(tensor, type_id=ids.get(tensor.name, tensor.type_id)) for tensor in header.tensors]
    return replace(header, tensors=tensors)


def spans(tensor: TensorInfo, header: Header, types: Sequence[BlockType]) -> str:
    """What the tensor's bytes are, and what they would be: for messages."""
    return f"id {tensor.type_id}, {tensor.span:,} bytes with padding: " + ", ".join(
        f"no row fits {block_type.name}"
        if (size := block_type.size(tensor.shape)) is None
        else f"{block_type.name} needs {header.padded(size):,}"
        for block_type in types
    )


def _fits(block_type: BlockType, tensor: TensorInfo, header: Header) -> bool:
    """Whether the tensor's span is that of this type. A file's end need not be padded."""
    size = block_type.size(tensor.shape)
    if size is None:
        return False
    return tensor.span == header.padded(size) or (tensor.span == size and tensor.stop == len(header.data))


def _decide(type_id: int, tensors: Sequence[TensorInfo], header: Header) -> list[FileTensor]:
    if (bitnet := _bitnet(type_id, tensors, header)) is not None:
        return bitnet
    claims = _claims(type_id)
    if len(claims) == 1 and type_id in upstream_types():
        return [_known(tensor, claims[0], header) for tensor in tensors]
    fitting = [claim for claim in claims if all(_fits(claim, tensor, header) for tensor in tensors)]
    if type_id in upstream_types() and len(fitting) > 1:
        said = f"nothing tells {' from '.join(claim.name for claim in fitting)}, as both need as many bytes"
        return [FileTensor(t, header, None, f"{said} ({spans(t, header, claims)})") for t in tensors]
    if fitting:
        return [FileTensor(tensor, header, fitting[0]) for tensor in tensors]
    if known_as(type_id):
        return _contradicting(tensors, claims, header)
    guess = _guess(tensors, header)
    return [FileTensor(tensor, header, guess) for tensor in tensors]


def _bitnet(type_id: int, tensors: Sequence[TensorInfo], header: Header) -> list[FileTensor] | None:
    """Tensors of bitnet.cpp, if the id is one of its own and all have the bytes of its type."""
    found = BITNET_TYPES.get(type_id)
    if found is None or not all(_has_one_of(found.sizes(tensor.shape), tensor, header) for tensor in tensors):
        return None
    upstream = upstream_types().get(type_id)
    if upstream is not None and all(_fits(upstream, tensor, header) for tensor in tensors):
        return None
    if found is I2_S:
        return [FileTensor(tensor, header, found) for tensor in tensors]
    said = (
        f"is {found.name} of bitnet.cpp, whose bytes are in the order of kernels for one shape of matrix; "
        f"convert the original checkpoint instead"
    )
    return [FileTensor(tensor, header, found, said) for tensor in tensors]


def _has_one_of(sizes: Sequence[int], tensor: TensorInfo, header: Header) -> bool:
    ends_the_file = tensor.stop == len(header.data)
    return any(tensor.span == header.padded(n) or (tensor.span == n and ends_the_file) for n in sizes)


def _claims(type_id: int) -> list[BlockType]:
    """What the id may stand for, the likeliest first."""
    upstream = upstream_types().get(type_id)
    ours: list[BlockType] = [claim for claim in known_as(type_id) if claim is not upstream]
    if upstream is not None:
        return [upstream, *ours]
    anything = [claim for claim in tensor_types() if claim.any_private_id and claim not in ours]
    return [*ours, *anything] if ours else []


def _guess(tensors: Sequence[TensorInfo], header: Header) -> BlockType | None:
    """The type of tensors whose id is nobody's. None where nothing speaks for one type alone."""
    private = [claim for claim in tensor_types() if not claim.is_stock]
    fitting = [claim for claim in private if all(_fits(claim, tensor, header) for tensor in tensors)]
    return fitting[0] if len(fitting) == 1 and fitting[0].any_private_id else None


def _known(tensor: TensorInfo, block_type: BlockType, header: Header) -> FileTensor:
    size = block_type.size(tensor.shape)
    if size is None:
        problem = f"rows of {tensor.row} weights are no whole {block_type.name} blocks of {block_type.block}"
        return FileTensor(tensor, header, None, problem)
    _require_bytes(tensor, size, block_type.name, header)
    gap = None if _fits(block_type, tensor, header) else f"a gap ({spans(tensor, header, [block_type])})"
    return FileTensor(tensor, header, block_type, gap)


def _contradicting(tensors: Sequence[TensorInfo], claims: Sequence[BlockType], header: Header) -> list[FileTensor]:
    found = []
    shown = [upstream_types()[LAST_UPSTREAM_ID], *(t for t in tensor_types() if not t.is_stock)]
    for claim in claims:
        misfits = [tensor for tensor in tensors if not _fits(claim, tensor, header)]
        if len(misfits) == 1 < len(tensors) and misfits[0].stop == len(header.data):
            _require_bytes(misfits[0], claim.size(misfits[0].shape) or 0, claim.name, header)
    for tensor in tensors:
        least = min(block_type.size(tensor.shape) or 0 for block_type in shown)
        _require_bytes(tensor, least, "the smallest type of that id", header)
        alone = [claim.name for claim in claims if _fits(claim, tensor, header)]
        if alone:
            said = f"is {' or '.join(alone)}, and others of that id are not"
        else:
            said = "its bytes are not of its id's type"
        found.append(FileTensor(tensor, header, None, f"{said} ({spans(tensor, header, shown)})"))
    return found


def _require_bytes(tensor: TensorInfo, size: int, name: str, header: Header) -> None:
    if size > tensor.span:
        what = "is it truncated?" if tensor.stop == len(header.data) else "the next tensor begins too early"
        raise SherryError(
            f"{header.path}: {tensor.name} has {tensor.span:,} bytes, and needs {size:,} as {name}; {what}"
        )
