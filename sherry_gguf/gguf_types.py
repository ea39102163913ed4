"""Teaches gguf-py SHERRY and STQ1_0, and Q2_0, which it lacks or cannot write: the only file that touches its tables.

gguf-py's enums are closed, and a member cannot be added by subclassing. What is done here instead is what ``enum``
itself does when it builds a class; the patched tree's own gguf-py has the members already, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf import format as fmt
from sherry_gguf import stq1_0
from sherry_gguf.blocks import dequantize, pack_exact
from sherry_gguf.exact import BY_NAME
from sherry_gguf.ternary import dequantize_q2_0, quantize_q2_0, quantize_q4_0

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def register(gguf: Any) -> None:
    """Add SHERRY, STQ1_0 and Q2_0 to ``gguf.GGMLQuantizationType``, ``LlamaFileType``, the sizes and ``gguf.quants``.

    Works on PyPI's gguf and on the one in llama.cpp's tree. Doing it twice changes nothing. SHERRY and STQ1_0 pack
    weights that lie on their grid exactly, and refuse all others: quantizing latent weights here would come too late,
    as chunks of rows know nothing of scales per channel or tensor. That is ``sherry_gguf.quantize``.
    A gguf-py that has an id under another name keeps it: upstream may give it out one day.
    """
    _add_type(gguf, fmt.TYPE_NAME, fmt.TYPE_ID, fmt.FILE_TYPE, pack_exact, dequantize)
    _add_type(gguf, stq1_0.TYPE_NAME, stq1_0.TYPE_ID, stq1_0.FILE_TYPE, stq1_0.pack_exact, stq1_0.dequantize)
    _add_type(gguf, "Q2_0", 42, 41, quantize_q2_0, dequantize_q2_0)  # as upstream numbers it


def use_exact_q4_0() -> None:
    """Let ``gguf.quants.quantize`` write blocks of one magnitude as they are in Q4_0; all others stay gguf-py's."""
    import gguf

    qtype = gguf.GGMLQuantizationType.Q4_0
    use_quantizer(gguf, qtype, partial(quantize_q4_0, gguf.quants._type_traits[qtype].quantize_blocks))


def use_quantizer(gguf: Any, qtype: IntEnum, quantize_rows: Callable[[F32], U8]) -> None:
    """Let ``gguf.quants.quantize`` write a type that gguf-py can only read.

    quantize_rows: float32[rows, k] -> uint8[rows, k / block size * type size].
    """
    traits = gguf.quants._type_traits[qtype]
    traits.quantize_rows = classmethod(lambda cls, rows: quantize_rows(rows.astype(np.float32, copy=False)))


def _add_type(
    gguf: Any, name: str, type_id: int, file_type: int, quantize: Callable[[F32], U8], dequantize: Callable[[U8], F32]
) -> None:
    """quantize: float32[n, block] -> uint8[n, block_bytes]; dequantize is its inverse."""
    types = gguf.GGMLQuantizationType
    if name not in types.__members__ and type_id in iter(types):
        return
    qtype = _add_member(gguf.GGMLQuantizationType, name, type_id)
    _add_member(gguf.LlamaFileType, f"MOSTLY_{name}", file_type)
    gguf.GGML_QUANT_SIZES[qtype] = (BY_NAME[name].block, BY_NAME[name].block_bytes)
    if qtype in gguf.quants._type_traits:
        return
    base = gguf.quants._type_traits[gguf.GGMLQuantizationType.Q8_0].__base__

    class Exact(base, qtype=qtype):  # type: ignore[call-arg, misc, valid-type]
        @classmethod
        def quantize_blocks(cls, blocks: F32) -> U8:
            return quantize(blocks)

        @classmethod
        def dequantize_blocks(cls, blocks: U8) -> F32:
            return dequantize(blocks)


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
