"""Codes and scales <-> the 22-byte blocks of type SHERRY. NumPy only: the oracle that the C code is held to."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.format import (
    BLOCK,
    BLOCK_BYTES,
    GROUP,
    GROUPS_PER_BLOCK,
    PATTERNS,
    QS_BYTES,
    SIGN_BYTES,
)
from sherry_gguf.groups import Groups, place

I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]

_BLOCK_DTYPE = np.dtype([("qs", np.uint8, QS_BYTES), ("signs", np.uint8, SIGN_BYTES), ("d", "<f2")])
assert _BLOCK_DTYPE.itemsize == BLOCK_BYTES


def round_scales(scales: F32, span: int = BLOCK, groups: Groups = "consecutive") -> F16:
    """float32[rows, k/span] -> float16[rows, k/span], to nearest even.

    Raises SherryError, naming row and group, for a scale that is negative, not finite, or rounds to 0 or infinity.
    """
    with np.errstate(over="ignore"):
        d = scales.astype(np.float16)
    bad = ~np.isfinite(d) | (scales < 0) | ((d == 0) & (scales != 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise SherryError(
            f"{np.count_nonzero(bad)} scales do not fit fp16 (5.96e-08 to 65504), the first is "
            f"{float(scales.reshape(-1)[first]):g} in "
            f"{place(first * (span // GROUP), scales.shape[-1] * span, groups)}; rescale the layer, or keep it "
            f"in another type (--tensor-type NAME=f32)"
        )
    return d


def pack(codes: U8, scales: F32) -> U8:
    """codes uint8[rows, k/4], scales float32[rows, k/128] -> blocks uint8[rows, k/128*22].

    A block of scale 0 is all zero bytes, whatever its codes. Raises SherryError as ``round_scales`` does, and where
    rows are no multiple of 128 weights or scales change inside a block.
    """
    rows, k = codes.shape[0], codes.shape[1] * GROUP
    if k % BLOCK:
        raise SherryError(
            f"rows of {k} weights are no multiple of {BLOCK}, which SHERRY needs; "
            f"keep this tensor in another type (--tensor-type NAME=f16)"
        )
    n_blocks = k // BLOCK
    if scales.shape != (rows, n_blocks):
        raise SherryError(
            f"a scale per {k // scales.shape[1]} weights does not fit SHERRY, which has one per {BLOCK}; "
            f"keep this tensor in another type (--tensor-type NAME=f16), or train with group_size {BLOCK}"
        )
    d = round_scales(scales)
    out = np.empty((rows, n_blocks), dtype=_BLOCK_DTYPE)
    groups = codes.reshape(rows, n_blocks, GROUPS_PER_BLOCK)
    halves = groups.reshape(rows, n_blocks, 2, QS_BYTES) & 0xF
    out["qs"] = halves[:, :, 0] | halves[:, :, 1] << 4
    out["signs"] = np.packbits(groups >> 4, axis=-1, bitorder="little")
    out["d"] = d
    out[d == 0] = 0
    return out.view(np.uint8).reshape(rows, n_blocks * BLOCK_BYTES)


def unpack(blocks: U8) -> tuple[U8, F32]:
    """blocks uint8[rows, k/128*22] -> codes uint8[rows, k/4], scales float32[rows, k/128].

    Raises SherryError for a scale that is negative or not finite.
    """
    rows, row_bytes = blocks.shape
    if row_bytes % BLOCK_BYTES:
        raise SherryError(f"rows of {row_bytes} bytes are no multiple of a SHERRY block's {BLOCK_BYTES}; truncated?")
    fields = np.ascontiguousarray(blocks).view(_BLOCK_DTYPE)
    n_blocks = row_bytes // BLOCK_BYTES
    scales = scales_of(fields["d"])
    halves = np.empty((rows, n_blocks, 2, QS_BYTES), dtype=np.uint8)
    np.bitwise_and(fields["qs"], 0xF, out=halves[:, :, 0])
    np.right_shift(fields["qs"], 4, out=halves[:, :, 1])
    signs = np.unpackbits(np.ascontiguousarray(fields["signs"]), axis=-1, bitorder="little")
    codes: U8 = halves.reshape(rows, n_blocks, GROUPS_PER_BLOCK) | signs << np.uint8(4)
    return codes.reshape(rows, n_blocks * GROUPS_PER_BLOCK), scales


def scales_of(d: F16) -> F32:
    """float16[rows, blocks] -> float32; SherryError for a scale that no block may have."""
    scales = d.astype(np.float32)
    bad = ~np.isfinite(scales) | np.signbit(scales)
    if bad.any():
        row, block = divmod(int(np.argmax(bad)), scales.shape[1])
        raise SherryError(f"block {block} of row {row} has the scale {scales[row, block]}; the file is damaged")
    return scales


# The four weights of a code as the four bytes of one word: one gather instead of four.
_PATTERN_WORDS = PATTERNS.view(np.int32).reshape(-1)


def ternary(codes: U8) -> I8:
    """codes uint8[rows, k/4] -> int8[rows, k]: -1, 0 or 1."""
    return _PATTERN_WORDS[codes].view(np.int8)


def expand(codes: U8, scales: F32) -> F32:
    """codes uint8[rows, k/4], scales float32[rows, k/span], any span -> weights float32[rows, k]."""
    rows, n_scales = scales.shape
    weights = np.multiply(ternary(codes).reshape(rows, n_scales, -1), scales[:, :, None], dtype=np.float32)
    return weights.reshape(rows, -1)


def dequantize(blocks: U8) -> F32:
    """blocks uint8[rows, k/128*22] -> weights float32[rows, k]. Raises SherryError as ``unpack`` does."""
    return expand(*unpack(blocks))


def pack_exact(weights: F32) -> U8:
    """Weights that lie on SHERRY's grid already, float32[rows, k] -> blocks uint8[rows, k/128*22].

    Every group of 4 has one zero and three weights of the block's one magnitude, an fp16 number; or the block is
    all zero. Raises SherryError, naming row and group, for anything that the blocks would not give back as it is.
    """
    codes, magnitudes, _ = read_grid(weights, math.gcd(weights.shape[1], BLOCK))
    blocks = pack(codes, magnitudes)
    wrong = dequantize(blocks) != weights
    if wrong.any():
        raise SherryError(
            f"{np.count_nonzero(wrong)} weights are not on SHERRY's grid, the first in "
            f"{place(int(np.argmax(wrong)) // GROUP, weights.shape[1])}; quantize them first (sherry_gguf.quantize)"
        )
    return blocks


def read_grid(weights: F32, span: int) -> tuple[U8, F32, npt.NDArray[np.bool_]]:
    """float32[rows, k] -> codes uint8[rows, k/4], magnitudes float32[rows, k/span], wrong bool[rows, k].

    ``wrong`` are the weights that codes and magnitudes would not give back.
    """
    codes = grid_codes(weights)
    magnitudes = np.abs(weights).reshape(len(weights), -1, span).max(axis=-1)
    return codes, magnitudes, expand(codes, magnitudes) != weights


_POWERS_OF_THREE = np.array([1, 3, 9, 27], dtype=np.uint8)
_CODE_OF_TRITS = np.zeros(81, dtype=np.uint8)
_CODE_OF_TRITS[(PATTERNS + 1).astype(np.uint8) @ _POWERS_OF_THREE] = np.arange(len(PATTERNS), dtype=np.uint8)


def grid_codes(weights: F32) -> U8:
    """float32[rows, k] -> uint8[rows, k/4]: the code of each group's signs; 0 where the signs form no code."""
    rows, k = weights.shape
    trits = (weights > 0).view(np.uint8) - (weights < 0).view(np.uint8) + np.uint8(1)
    codes: U8 = _CODE_OF_TRITS[trits.reshape(rows, k // GROUP, GROUP) @ _POWERS_OF_THREE]
    return codes
