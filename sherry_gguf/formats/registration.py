"""Teaches gguf-py the types of the table that it lacks or cannot write: the only file that touches gguf-py's tables.

gguf-py's enums are closed, and a member cannot be added by subclassing. What is done here instead is what ``enum``
itself does when it builds a class. The patched tree's own gguf-py has the members already, and they are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.q4_0 import encode_mixed
from sherry_gguf.formats.table import tensor_types
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.threads import in_parts, rows_of

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def register(gguf: Any) -> None:
    """Add what is missing to ``gguf.GGMLQuantizationType``, ``LlamaFileType``, the sizes and ``gguf.quants``.

    Works on PyPI's gguf and on the one in llama.cpp's tree. Doing it twice changes nothing. The types added pack
    weights that they hold exactly, and refuse all others: quantizing latent weights here would come too late, because
    chunks of rows know nothing of scales per channel or tensor. That is ``sherry_gguf.weights.quantize``.
    A gguf-py that has an id under another name keeps it: upstream may give the id out one day.
    """
    for tensor_type in tensor_types():
        _add_type(gguf, tensor_type)


def use_exact_q4_0() -> None:
    """Let ``gguf.quants.quantize`` write blocks of one magnitude as they are in Q4_0; all others stay gguf-py's."""
    import gguf

    qtype = gguf.GGMLQuantizationType.Q4_0
    use_quantizer(gguf, qtype, partial(encode_mixed, gguf.quants._type_traits[qtype].quantize_blocks))


def use_quantizer(gguf: Any, qtype: IntEnum, quantize_rows: Callable[[F32], U8]) -> None:
    """Let ``gguf.quants.quantize`` write a type that gguf-py can only read.

    quantize_rows: float32[rows, k] -> uint8[rows, k / block size * type size].
    """
    traits = gguf.quants._type_traits[qtype]
    traits.quantize_rows = classmethod(lambda cls, rows: quantize_rows(rows.astype(np.float32, copy=False)))


def use_threads() -> None:
    """Let ``gguf.quants`` work on rows in the threads of ``sherry_gguf.threads``: rows know nothing of each other."""
    import gguf

    gguf.quants._apply_over_grouped_rows = _apply_over_rows


def _apply_over_rows(
    work: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], arr: npt.NDArray[Any], otype: Any, oshape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """gguf-py's function of this place: some rows at a time, each one's results side by side in an array of oshape."""
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty((len(rows), math.prod(oshape) // max(1, len(rows))), dtype=otype)

    def part(start: int, stop: int) -> None:
        out[start:stop] = work(rows[start:stop]).reshape(stop - start, -1)

    in_parts(part, len(rows), rows_of(rows.shape[1]))
    return out.reshape(oshape)


def _add_type(gguf: Any, tensor_type: TensorType) -> None:
    name, type_id = tensor_type.name, tensor_type.type_id
    types = gguf.GGMLQuantizationType
    if name not in types.__members__ and type_id in iter(types):
        return
    qtype = _add_member(types, name, type_id)
    _add_member(gguf.LlamaFileType, f"MOSTLY_{name}", tensor_type.file_type)
    gguf.GGML_QUANT_SIZES[qtype] = (tensor_type.block, tensor_type.block_bytes)
    if qtype in gguf.quants._type_traits:
        return
    base = gguf.quants._type_traits[types.Q8_0].__base__

    class Exact(base, qtype=qtype):  # type: ignore[call-arg, misc, valid-type]
        @classmethod
        def quantize_blocks(cls, blocks: F32) -> U8:
            return tensor_type.pack(blocks)

        @classmethod
        def dequantize_blocks(cls, blocks: U8) -> F32:
            return tensor_type.dequantize(blocks)


def _add_member(enum: type[IntEnum], name: str, value: int) -> IntEnum:
    """Return the member ``name`` of ``enum``, added with ``value`` if it is not there yet."""
    if name in enum.__members__:
        return enum[name]
    member = int.__new__(enum, value)
    member._name_ = name
    member._value_ = value
    type.__setattr__(enum, name, member)  # from Python 3.12 on, attribute access no longer asks the map
    enum._member_map_[name] = member
    enum._value2member_map_[value] = member
    enum._member_names_.append(name)
    return member
