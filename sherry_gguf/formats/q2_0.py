"""Q2_0: 64 weights in 18 bytes, 2.25 bits per weight. One of llama.cpp's own, and without a kernel for x86.

    d       IEEE fp16 scale, little-endian
    qs[16]  qs[j], bits 2i and 2i + 1: t[4j + i] + 1; a code of 3 is t = 2, and is never written

Source: block_q2_0 in ggml-common.h, dequantize_row_q2_0 and quantize_row_q2_0_ref in ggml-quants.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.dense import SHIFTS, assemble, take_apart
from sherry_gguf.formats.groups import signs
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.scales import nearest
from sherry_gguf.formats.tensor_type import TensorType

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_BLOCK = np.dtype([("d", "<f2"), ("qs", np.uint8, 16)])


def encode(weights: F32) -> U8:
    """float32[rows, n*64] -> uint8[rows, n*18], the bytes of quantize_row_q2_0_ref for any weights.

    d is the largest magnitude, t = round(w / d).
    """
    blocks = weights.reshape(len(weights), -1, 64)
    d = np.abs(blocks).max(axis=-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, 0, 1 / d).astype(np.float32)
    t = signs(blocks) * (np.abs(blocks * inverse[..., None]) >= 0.5)
    codes = (t + np.int8(1)).view(np.uint8).reshape(*d.shape, 16, 4) << SHIFTS
    return assemble(_BLOCK, nearest(d), qs=np.bitwise_or.reduce(codes, axis=-1))


def decode(data: U8) -> Planes:
    """uint8[rows, n*18] -> t -1 to 2"""
    blocks = np.ascontiguousarray(data).view(_BLOCK)
    return take_apart(blocks["qs"][..., None] >> SHIFTS & 3, 1, blocks["d"])


Q2_0: Final = TensorType(
    name="Q2_0",
    type_id=42,
    block=64,
    block_bytes=18,
    encode=encode,
    decode=decode,
    file_type=41,
    is_stock=True,
    is_fast=False,
)
