"""TQ1_0: 256 ternary weights in 54 bytes, 1.6875 bits per weight. One of llama.cpp's own.

    qs[48], qh[4]  five digits t + 1 of base 3 a byte, ceil(256 / 243 * sum(digit * 3**(4 - i))), i counting them:
                   qs[j] t[32i + j]; qs[32 + j] t[160 + 16i + j]; qh[j] t[240 + 4i + j], where i < 4
    d              IEEE fp16 scale, little-endian

Source: block_tq1_0 in ggml-common.h, dequantize_row_tq1_0 in ggml-quants.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.dense import assemble, largest_and_signs, take_apart
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.tensor_type import TensorType

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_BLOCK = np.dtype([("qs", np.uint8, 48), ("qh", np.uint8, 4), ("d", "<f2")])
_PARTS = ((0, 160, 5), (160, 240, 5), (240, 256, 4))  # first weight, last, digits in a byte
_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], dtype=np.uint8)


def encode(weights: F32) -> U8:
    """float32[rows, n*256] -> uint8[rows, n*54]"""
    t, d = largest_and_signs(weights, 256)
    digits = (t + np.int8(1)).astype(np.uint16)
    parts = []
    for first, last, count in _PARTS:
        lanes = digits[..., first:last].reshape(*d.shape, count, -1)
        number = (lanes * _POWERS_OF_THREE[4::-1][:count, None]).sum(axis=-2, dtype=np.uint16)
        parts.append((number * 256 + 242) // 243)
    qs = np.concatenate(parts, axis=-1).astype(np.uint8)
    return assemble(_BLOCK, d, qs=qs[..., :48], qh=qs[..., 48:])


def decode(data: U8) -> Planes:
    """uint8[rows, n*54] -> t -1, 0 or 1"""
    blocks = np.ascontiguousarray(data).view(_BLOCK)
    parts = ((blocks["qs"][..., :32], 5), (blocks["qs"][..., 32:], 5), (blocks["qh"], 4))
    # a byte is a fraction of 256: times 3**i it has digit i before the point, as uint8 drops the digits before that
    fractions = [part[..., None, :] * _POWERS_OF_THREE[:count, None] for part, count in parts]
    digits = np.concatenate([f.reshape(*blocks.shape, -1) for f in fractions], axis=-1).astype(np.uint16) * 3 >> 8
    return take_apart(digits, 1, blocks["d"])


TQ1_0: Final = TensorType(
    name="TQ1_0", type_id=34, block=256, block_bytes=54, encode=encode, decode=decode, file_type=36, is_stock=True
)
