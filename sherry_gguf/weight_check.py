"""Blocks of a file against the trained weights they stand for: code by code, scale by scale, with no tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.blocks import grid_codes, unpack
from sherry_gguf.format import BLOCK, GROUPS_PER_BLOCK, PATTERNS
from sherry_gguf.quantize import place

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WeightCheck:
    """tensors, weights, scales   how many were compared
    wrong_weights    weights whose sign or zero is not the trained one
    wrong_scales     scales that are not the trained alpha rounded to fp16
    max_scale_error  largest |scale - alpha| / alpha; rounding alone gives up to 2**-11 for normal fp16 numbers
    first_wrong      where the first wrong weight or scale is, None without one
    """

    tensors: int = 0
    weights: int = 0
    wrong_weights: int = 0
    scales: int = 0
    wrong_scales: int = 0
    max_scale_error: float = 0.0
    first_wrong: str | None = None

    def __add__(self, other: WeightCheck) -> WeightCheck:
        return WeightCheck(
            self.tensors + other.tensors,
            self.weights + other.weights,
            self.wrong_weights + other.wrong_weights,
            self.scales + other.scales,
            self.wrong_scales + other.wrong_scales,
            max(self.max_scale_error, other.max_scale_error),
            self.first_wrong or other.first_wrong,
        )


def compare(name: str, blocks: U8, trained: F32) -> WeightCheck:
    """blocks uint8[rows, k/128*22] against the trained weights float32[rows, k], alpha not rounded."""
    codes, scales = unpack(blocks)
    alpha = np.abs(trained).reshape(len(trained), -1, BLOCK).max(axis=-1)
    # the codes of a block of zeros mean nothing
    trained_codes = grid_codes(trained)
    differ = (codes != trained_codes) & (alpha != 0).repeat(GROUPS_PER_BLOCK, axis=1)
    wrong_weights = int(np.count_nonzero(PATTERNS[codes[differ]] != PATTERNS[trained_codes[differ]]))
    wrong_scale = scales != alpha.astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(scales == alpha, 0, np.abs(scales - alpha) / alpha)
    wrong = differ | wrong_scale.repeat(GROUPS_PER_BLOCK, axis=1)
    return WeightCheck(
        tensors=1,
        weights=trained.size,
        wrong_weights=wrong_weights,
        scales=alpha.size,
        wrong_scales=int(np.count_nonzero(wrong_scale)),
        max_scale_error=float(error.max()),
        first_wrong=f"{name}, {place(int(np.argmax(wrong)), trained.shape[1])}" if wrong.any() else None,
    )
