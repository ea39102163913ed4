"""Ternary weights in types that llama.cpp has without the patch: TQ1_0, TQ2_0, Q2_0 and Q4_0. NumPy only.

A block is an fp16 scale d and a code per weight: here t = -1, 0 or 1, which stands for t * d. Q2_0 has a code for 2 * d
as well, Q4_0 for -8 * d to 7 * d; these are read and never written. In the file, i counting what one byte holds:

    TQ1_0  256 weights  qs[48], qh[4], d   five of base 3 a byte, ceil(256 / 243 * sum((t + 1) * 3**(4 - i))):
                                           qs[j] t[32i + j]; qs[32 + j] t[160 + 16i + j]; qh[j] t[240 + 4i + j], i < 4
    TQ2_0  256 weights  qs[64], d          qs[32h + j], bits 2i and 2i + 1: t[128h + 32i + j] + 1
    Q2_0   64 weights   d, qs[16]          qs[j], bits 2i and 2i + 1: t[4j + i] + 1
    Q4_0   32 weights   d, qs[16]          qs[j]: low nibble t[j] + 8, high nibble t[16 + j] + 8

Source: block_* in ggml-common.h, dequantize_row_* in ggml-quants.c. gguf-py writes the first two, with the largest
magnitude as d: in a block that has but one this changes nothing, nor does Q2_0's quantizer, which gguf-py lacks. Its
Q4_0 makes the first of the largest weights -8 * d, so that those of the other sign come out as 7 * d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

_TQ1_0 = np.dtype([("qs", np.uint8, 48), ("qh", np.uint8, 4), ("d", "<f2")])
_TQ2_0 = np.dtype([("qs", np.uint8, 64), ("d", "<f2")])
_Q2_0 = np.dtype([("d", "<f2"), ("qs", np.uint8, 16)])
_Q4_0 = np.dtype([("d", "<f2"), ("qs", np.uint8, 16)])

_LARGEST_FP16 = float(np.finfo(np.float16).max)
_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)
_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], dtype=np.uint8)


def signs(weights: F32) -> I8:
    """float32[...] -> int8[...]: -1, 0 or 1."""
    return (weights > 0).view(np.int8) - (weights < 0).view(np.int8)


def unpack_tq1_0(data: U8) -> tuple[I8, F32]:
    """uint8[rows, n*54] -> t int8[rows, n*256], d float32[rows, n]."""
    blocks = _blocks(data, _TQ1_0)
    parts = ((blocks["qs"][..., :32], 5), (blocks["qs"][..., 32:], 5), (blocks["qh"], 4))
    # a byte is a fraction of 256: times 3**i it has digit i before the point, as uint8 drops the digits before that
    fractions = [part[..., None, :] * _POWERS_OF_THREE[:count, None] for part, count in parts]
    digits = np.concatenate([f.reshape(*blocks.shape, -1) for f in fractions], axis=-1).astype(np.uint16) * 3 >> 8
    return _result(digits, 1, blocks)


def unpack_tq2_0(data: U8) -> tuple[I8, F32]:
    """uint8[rows, n*66] -> t int8[rows, n*256], d float32[rows, n]; t = 2 where a code says so."""
    blocks = _blocks(data, _TQ2_0)
    return _result(blocks["qs"].reshape(*blocks.shape, 2, 1, 32) >> _SHIFTS[:, None] & 3, 1, blocks)


def unpack_q2_0(data: U8) -> tuple[I8, F32]:
    """uint8[rows, n*18] -> t int8[rows, n*64], d float32[rows, n]; t = 2 where a code says so."""
    blocks = _blocks(data, _Q2_0)
    return _result(blocks["qs"][..., None] >> _SHIFTS & 3, 1, blocks)


def unpack_q4_0(data: U8) -> tuple[I8, F32]:
    """uint8[rows, n*18] -> t int8[rows, n*32], d float32[rows, n]; t = -8..7 where a code says so."""
    blocks = _blocks(data, _Q4_0)
    return _result(np.concatenate([blocks["qs"] & 0xF, blocks["qs"] >> 4], axis=-1), 8, blocks)


def quantize_q2_0(weights: F32) -> U8:
    """float32[n, 64] -> uint8[n, 18], those of quantize_row_q2_0_ref: d is the largest magnitude, t = round(w / d)."""
    d = np.abs(weights).max(axis=1)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, 0, 1 / d).astype(np.float32)
    t = signs(weights) * (np.abs(weights * inverse[:, None]) >= 0.5)
    out = np.empty(len(weights), dtype=_Q2_0)
    out["d"] = d
    out["qs"] = np.bitwise_or.reduce((t + np.int8(1)).view(np.uint8).reshape(-1, 16, 4) << _SHIFTS, axis=-1)
    return out.view(np.uint8).reshape(-1, _Q2_0.itemsize)


def dequantize_q2_0(data: U8) -> F32:
    """uint8[n, 18] -> float32[n, 64]."""
    t, d = unpack_q2_0(data)
    return t * d


def quantize_q4_0(upstream: Callable[[F32], U8], weights: F32) -> U8:
    """float32[rows, k] -> uint8[rows, k/32*18]: blocks of one magnitude as they are, all others by ``upstream``.

    upstream: gguf-py's, float32[n, 32] -> uint8[n, 18].
    """
    blocks = weights.reshape(-1, 32)
    magnitudes = np.abs(blocks)
    largest = magnitudes.max(axis=1, keepdims=True)
    is_ternary = ((magnitudes == largest) | (magnitudes == 0)).all(axis=1) & (largest[:, 0] <= _LARGEST_FP16)
    out = np.empty((len(blocks), _Q4_0.itemsize), dtype=np.uint8)
    out[~is_ternary] = upstream(blocks[~is_ternary])
    packed = np.empty(np.count_nonzero(is_ternary), dtype=_Q4_0)
    nibbles = (signs(blocks[is_ternary]) + np.int8(8)).view(np.uint8)
    packed["qs"] = nibbles[:, :16] | nibbles[:, 16:] << 4
    packed["d"] = largest[is_ternary, 0]
    out[is_ternary] = packed.view(np.uint8).reshape(-1, _Q4_0.itemsize)
    return out.reshape(len(weights), -1)


def _blocks(data: U8, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """uint8[rows, n * size] -> dtype[rows, n]."""
    return np.ascontiguousarray(data).view(dtype)


def _result(codes: npt.NDArray[Any], zero: int, blocks: npt.NDArray[np.void]) -> tuple[I8, F32]:
    """Codes [rows, n, ...] in the order of the weights, and the code of 0."""
    t = codes.astype(np.int8) - np.int8(zero)
    return t.reshape(len(blocks), -1), blocks["d"].astype(np.float32)
