"""TQ2_0: 256 ternary weights in 66 bytes, 2.0625 bits per weight. One of llama.cpp's own.

    qs[64]  qs[32h + j], bits 2i and 2i + 1: t[128h + 32i + j] + 1; a code of 3 would be t = 2, and is never written
    d       IEEE fp16 scale, little-endian

Source: block_tq2_0 in ggml-common.h, dequantize_row_tq2_0 in ggml-quants.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.dense import SHIFTS, assemble, largest_and_signs, take_apart
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.tensor_type import TensorType

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_BLOCK = np.dtype([("qs", np.uint8, 64), ("d", "<f2")])


def encode(weights: F32) -> U8:
    """float32[rows, n*256] -> uint8[rows, n*66]"""
    t, d = largest_and_signs(weights, 256)
    codes = (t + np.int8(1)).view(np.uint8).reshape(*d.shape, 2, 4, 32) << SHIFTS[:, None]
    return assemble(_BLOCK, d, qs=np.bitwise_or.reduce(codes, axis=-2).reshape(*d.shape, 64))


def decode(data: U8) -> Planes:
    """uint8[rows, n*66] -> t -1 to 2"""
    blocks = np.ascontiguousarray(data).view(_BLOCK)
    return take_apart(blocks["qs"].reshape(*blocks.shape, 2, 1, 32) >> SHIFTS[:, None] & 3, 1, blocks["d"])


TQ2_0: Final = TensorType(
    name="TQ2_0", type_id=35, block=256, block_bytes=66, encode=encode, decode=decode, file_type=37, is_stock=True
)
