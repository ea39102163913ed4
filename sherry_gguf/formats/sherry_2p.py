"""SHERRY_2P: two planes, 128 neighbours in 44 bytes, 2.75 bits per weight.

bytes 0..21    the first plane: a SHERRY block with codes c0 and scale d0
bytes 22..43   the second plane: a SHERRY block with codes c1 and scale d1

A weight is d0 * c0 + d1 * c1 in float32, so that each plane has one zero in every group of four. A matrix of SHERRY is
one of SHERRY_2P with d1 = 0. To other weights the type comes near; ``encode`` does not try that.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.code_blocks import CodeBlocks
from sherry_gguf.formats.groups import GROUP, codes_of
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.scales import nearest
from sherry_gguf.formats.tensor_type import TensorType

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

PLANE: Final = CodeBlocks("SHERRY_2P", 128, "consecutive", low=slice(0, 16), high=slice(16, 32))
"""A plane's blocks: those of SHERRY."""

BLOCK_BYTES: Final = 2 * PLANE.block_bytes
_MAGNITUDES = 4  # of a block's weights that are not 0: a, b, a + b, a - b
_PART = 1 << 18  # weights handled at a time, so that the temporaries stay in the cache


def pack_planes(codes0: U8, codes1: U8, scales0: F32 | F16, scales1: F32 | F16) -> U8:
    """Codes uint8[rows, k/4] and scales [rows, k/128] of each plane -> blocks uint8[rows, k/128*44].

    Raises SherryError where rows are no whole blocks, the planes differ in shape, or fp16 cannot hold a scale. A scale
    of 0 makes its plane zero, whatever the codes.
    """
    if codes0.shape != codes1.shape:
        raise SherryError(f"the planes have shapes {list(codes0.shape)} and {list(codes1.shape)}", Way.OTHER_TYPE)
    return _interleave(PLANE.pack(codes0, scales0.astype(np.float32)), PLANE.pack(codes1, scales1.astype(np.float32)))


def unpack_planes(blocks: U8) -> tuple[U8, U8, F32, F32]:
    """The inverse: codes uint8[rows, k/4] and scales float32[rows, k/128] of the first plane, and of the second.

    Raises SherryError for a scale that is negative or not finite.
    """
    first, second = _take_apart(blocks)
    codes0, scales0 = PLANE.unpack(first)
    codes1, scales1 = PLANE.unpack(second)
    return codes0, codes1, scales0, scales1


def encode(weights: F32) -> U8:
    """float32[rows, n*128] -> uint8[rows, n*44], as ``TensorType.encode``.

    A block of one magnitude and one zero in every group is a single plane; its scale is the magnitude. Else the scales
    a >= b and the codes are read off the weights, which are sums of both. Of a block that is neither, a single plane
    is written, with the largest magnitude: its weights change, unless they have one magnitude in fp16.

    Sums are found wherever float32 holds a + b and a - b exactly, as it does up to a / b = 2**13.
    """
    blocks = weights.reshape(-1, PLANE.block)
    out = np.empty((len(blocks), BLOCK_BYTES), dtype=np.uint8)
    step = _PART // PLANE.block
    for start in range(0, len(blocks), step):
        out[start : start + step] = _encode_blocks(blocks[start : start + step])
    return out.reshape(len(weights), weights.shape[1] // PLANE.block * BLOCK_BYTES)


def decode(blocks: U8) -> Planes:
    """blocks -> Planes, as ``TensorType.decode``."""
    first, second = (PLANE.decode(plane) for plane in _take_apart(blocks))
    return Planes(np.concatenate([first.t, second.t]), np.concatenate([first.d, second.d]))


def _interleave(first: U8, second: U8) -> U8:
    """uint8[rows, n*22] of each plane -> uint8[rows, n*44]"""
    planes = [plane.reshape(len(plane), -1, PLANE.block_bytes) for plane in (first, second)]
    return np.concatenate(planes, axis=-1).reshape(len(first), -1)


def _take_apart(blocks: U8) -> tuple[U8, U8]:
    """uint8[rows, n*44] -> uint8[rows, n*22] of each plane"""
    rows, row_bytes = blocks.shape
    if row_bytes % BLOCK_BYTES:
        raise SherryError(
            f"rows of {row_bytes} bytes are no multiple of a {PLANE.name} block's {BLOCK_BYTES}; truncated?"
        )
    planes = blocks.reshape(rows, row_bytes // BLOCK_BYTES, 2, PLANE.block_bytes)
    return planes[:, :, 0].reshape(rows, -1), planes[:, :, 1].reshape(rows, -1)


def _encode_blocks(weights: F32) -> U8:
    """float32[n, 128] -> uint8[n, 44]"""
    out = _interleave(PLANE.encode(weights), np.zeros((len(weights), PLANE.block_bytes), dtype=np.uint8))
    left = np.flatnonzero(~is_one_plane(weights) & _has_few_magnitudes(weights))
    pairs = _scale_pairs(weights[left])
    for i in range(pairs.shape[1]):
        fits, codes = _read_off(weights[left], pairs[:, i])
        if not fits.any():
            continue
        d = pairs[fits, i]
        out[left[fits]] = pack_planes(codes[0, fits], codes[1, fits], d[:, :1], d[:, 1:])
        left, pairs = left[~fits], pairs[~fits]
    return out


def is_one_plane(weights: F32) -> Bool:
    """float32[n, 128] -> bool[n]: one magnitude, and one zero in every group, or zeros alone."""
    magnitudes = np.abs(weights)
    largest = magnitudes.max(axis=1, keepdims=True)
    one_magnitude = ((magnitudes == largest) | (magnitudes == 0)).all(axis=1)
    one_zero = (np.count_nonzero(weights.reshape(len(weights), PLANE.groups, GROUP), axis=2) == GROUP - 1).all(axis=1)
    found: Bool = one_magnitude & (one_zero | (largest[:, 0] == 0))
    return found


def _has_few_magnitudes(weights: F32) -> Bool:
    """float32[n, 128] -> bool[n]: no more than two planes can have."""
    magnitudes = np.sort(np.abs(weights), axis=1)
    before = np.pad(magnitudes[:, :-1], ((0, 0), (1, 0)))
    few: Bool = np.count_nonzero(magnitudes != before, axis=1) <= _MAGNITUDES
    return few


def _scale_pairs(weights: F32) -> F16:
    """float32[n, 128] -> float16[n, pairs, 2]: every a >= b that a block of two planes may have.

    The largest magnitude m is a + b or, in a block without a sum, a. Whatever another magnitude y is, b, a, a - b or 0,
    a and b follow. The next to the largest is taken for y, and the smallest, which is b itself where b is very small.
    """
    magnitudes = np.abs(weights)
    m = magnitudes.max(axis=1)
    second = np.where(magnitudes < m[:, None], magnitudes, 0).max(axis=1)
    least = np.where(magnitudes > 0, magnitudes, m[:, None]).min(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        pairs = [
            pair for y in (second, least) for pair in ((m, y), (m, m - y), (y, m - y), (m / 2 + y / 2, m / 2 - y / 2))
        ]
        found: F16 = np.sort(nearest(np.array(pairs)), axis=1)[:, ::-1].transpose(2, 0, 1)
    return found


def _read_off(weights: F32, scales: F16) -> tuple[Bool, U8]:
    """float32[n, 128], a >= b float16[n, 2] -> bool[n]: the block is two such planes; its codes uint8[2, n, 32]."""
    a, b = (scales[:, i].astype(np.float32)[:, None, None] for i in range(2))
    groups = weights.reshape(len(weights), PLANE.groups, GROUP)
    magnitudes = np.abs(groups)
    with np.errstate(invalid="ignore"):
        is_sum = magnitudes == a + b
        is_of_both = is_sum | (magnitudes == a - b)
    is_a, is_b, is_zero = magnitudes == a, magnitudes == b, groups == 0

    sign = np.where(groups < 0, np.int8(-1), np.int8(1))
    t: I8 = np.stack([sign, np.where(is_sum, sign, -sign)])
    left = np.ones(groups.shape[:2], dtype=np.bool_)
    for zero0, zero1 in product(range(GROUP), repeat=2):
        fits = left.copy()
        for i in range(GROUP):
            has = {(True, True): is_zero, (True, False): is_b, (False, True): is_a}.get((i == zero0, i == zero1))
            fits &= (is_of_both if has is None else has)[..., i]
        t[1, fits, zero0] = sign[fits, zero0]  # what is left of the weight there
        t[0, fits, zero0] = 0
        t[1, fits, zero1] = 0
        left &= ~fits
    codes = np.stack([codes_of(plane.reshape(weights.shape)) for plane in t])
    return np.asarray(np.isfinite(scales).all(axis=1) & ~left.any(axis=1)), codes


SHERRY_2P: Final = TensorType(
    name="SHERRY_2P",
    type_id=521,  # beside SHERRY_G32
    block=PLANE.block,
    block_bytes=BLOCK_BYTES,
    encode=encode,
    decode=decode,
    codes=PLANE,
    planes=2,
    file_type=521,
    any_private_id=True,
    format_version=2,
    only_ternary=False,
)
