"""STQ1_0 in NumPy, written from the description of its bytes alone: what the C side is held to.

A block is 256 weights in 42 bytes: qs[32], sign[8], d. Of group g (0..63) nibble g % 2 of byte g // 2, the low one
first, is the index, bit g % 8 of sign byte g // 8 the sign; lane p (0..3) is weight g // 16 * 64 + g % 16 + 16 * p.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

BLOCK = 256
BLOCK_BYTES = 42
GROUPS = 64

# index 0..15 of sign 0: where the zero is, and who differs in sign from the first: nobody, second, third, both
_INDICES = "0+++ 0+-+ 0++- 0+-- +0++ +0-+ +0+- +0-- ++0+ +-0+ ++0- +-0- +++0 +-+0 ++-0 +--0"
_POSITIVE = np.array([[{"+": 1, "-": -1, "0": 0}[c] for c in word] for word in _INDICES.split()])
PATTERNS = np.concatenate([_POSITIVE, -_POSITIVE])  # [32, 4]: of code sign << 4 | index

_G = np.arange(GROUPS)
PLACES = _G[:, None] // 16 * 64 + _G[:, None] % 16 + 16 * np.arange(4)  # [64, 4]


def pack(codes: npt.NDArray[np.integer], scales: F32) -> U8:
    """codes [rows, k/4] in the order of the groups, scales [rows, k/256] -> uint8[rows, k/256*42]"""
    rows, n = scales.shape
    codes = codes.reshape(rows, n, GROUPS).astype(np.uint8)
    index, sign = codes & 15, codes >> 4
    qs = index[..., 0::2] | index[..., 1::2] << 4
    signs = np.packbits(sign, axis=-1, bitorder="little")
    d = scales.astype("<f2")[..., None].view(np.uint8)
    return np.concatenate([qs, signs, d], axis=-1).reshape(rows, -1)


def unpack(blocks: U8) -> tuple[U8, F32]:
    """uint8[rows, k/256*42] -> codes [rows, k/4], scales [rows, k/256]"""
    data = blocks.reshape(len(blocks), -1, BLOCK_BYTES)
    index = np.stack([data[..., :32] & 15, data[..., :32] >> 4], axis=-1).reshape(*data.shape[:2], GROUPS)
    sign = np.unpackbits(data[..., 32:40], axis=-1, bitorder="little")
    d = np.ascontiguousarray(data[..., 40:]).view("<f2")[..., 0].astype(np.float32)
    return (sign << 4 | index).reshape(len(blocks), -1), d


def ternary(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """codes [rows, k/4] -> weights -1, 0, 1 [rows, k]"""
    lanes = PATTERNS[codes].reshape(-1, GROUPS, 4)
    out = np.empty((len(lanes), BLOCK), np.int64)
    out[:, PLACES] = lanes
    return out.reshape(len(codes), -1)


def expand(codes: npt.NDArray[np.integer], scales: F32) -> F32:
    return (ternary(codes).astype(np.float32).reshape(-1, BLOCK) * scales.reshape(-1, 1)).reshape(len(codes), -1)


def dequantize(blocks: U8) -> F32:
    return expand(*unpack(blocks))


def quantize(weights: F32) -> U8:
    """The three largest of a group are kept, the first of equals is zeroed; the scale is the kept ones' mean."""
    groups = weights.reshape(-1, BLOCK)[:, PLACES]  # [n, 64, 4]
    magnitude = np.abs(groups.astype(np.float64))
    zero = magnitude.argmin(axis=-1)
    kept = np.arange(4) != zero[..., None]
    scale = (np.where(kept, magnitude, 0).sum(axis=(1, 2)) / (3 * GROUPS)).astype(np.float32).astype(np.float16)
    negative = (groups < 0)[kept].reshape(*zero.shape, 3)
    first, second, third = np.moveaxis(negative, -1, 0)
    codes = first << 4 | zero << 2 | (third ^ first) << 1 | (second ^ first)
    codes[scale == 0] = 0
    return pack(codes.reshape(len(weights), -1), scale.astype(np.float32).reshape(len(weights), -1))
