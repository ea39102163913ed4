"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight. One of llama.cpp's own, for weights of any kind.

    d       IEEE fp16 scale, little-endian
    qs[16]  qs[j]: low nibble t[j] + 8, high nibble t[16 + j] + 8, where t is -8 to 7

Ternary weights are written with d as their magnitude and t = -1, 0 or 1, which is exact. Upstream's quantizer makes the
first of the largest weights -8 * d, so that weights of the other sign come out as 7 * d.

Source: block_q4_0 in ggml-common.h, dequantize_row_q4_0 and quantize_row_q4_0_ref in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.dense import assemble, largest_and_signs, take_apart
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.scales import LARGEST
from sherry_gguf.formats.tensor_type import TensorType

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_BLOCK = np.dtype([("d", "<f2"), ("qs", np.uint8, 16)])


def encode(weights: F32) -> U8:
    """float32[rows, n*32] -> uint8[rows, n*18]"""
    t, d = largest_and_signs(weights, 32)
    nibbles = (t + np.int8(8)).view(np.uint8)
    return assemble(_BLOCK, d, qs=nibbles[..., :16] | nibbles[..., 16:] << 4)


def decode(data: U8) -> Planes:
    """uint8[rows, n*18] -> t -8 to 7"""
    blocks = np.ascontiguousarray(data).view(_BLOCK)
    return take_apart(np.concatenate([blocks["qs"] & 0xF, blocks["qs"] >> 4], axis=-1), 8, blocks["d"])


def encode_mixed(upstream: Callable[[F32], U8], weights: F32) -> U8:
    """float32[rows, k] -> uint8[rows, k/32*18]: blocks of one magnitude by ``encode``, all others by ``upstream``.

    upstream: gguf-py's quantizer, float32[n, 32] -> uint8[n, 18].
    """
    blocks = weights.reshape(-1, 32)
    magnitudes = np.abs(blocks)
    largest = magnitudes.max(axis=1, keepdims=True)
    is_ternary = ((magnitudes == largest) | (magnitudes == 0)).all(axis=1) & (largest[:, 0] <= LARGEST)
    out = np.empty((len(blocks), _BLOCK.itemsize), dtype=np.uint8)
    out[~is_ternary] = upstream(blocks[~is_ternary])
    out[is_ternary] = encode(blocks[is_ternary])
    return out.reshape(len(weights), -1)


Q4_0: Final = TensorType(
    name="Q4_0",
    type_id=2,
    block=32,
    block_bytes=18,
    encode=encode,
    decode=decode,
    file_type=2,
    is_stock=True,
    only_ternary=False,
)
