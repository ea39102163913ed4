"""Blocks against the trained weights they stand for: weight by weight, scale by scale, with no tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.exact import SHERRY, ExactType
from sherry_gguf.format import GROUP
from sherry_gguf.groups import place
from sherry_gguf.ternary import signs

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


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


def compare(name: str, data: U8, trained: F32, kind: ExactType = SHERRY) -> WeightCheck:
    """uint8[rows, k/block*block_bytes] of a type against the trained weights float32[rows, k], alpha not rounded."""
    ternary, scales = kind.unpack(data)
    alpha = _largest(trained, kind.block)
    differ = _differ(ternary, trained, alpha)
    wrong_scale = (scales != _in_fp16(alpha)) | _uneven(trained, alpha).any(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(scales == alpha, 0, np.abs(scales - alpha) / alpha)
    wrong = differ | wrong_scale[..., None]
    return WeightCheck(
        tensors=1,
        weights=trained.size,
        wrong_weights=int(np.count_nonzero(differ)),
        scales=alpha.size,
        wrong_scales=int(np.count_nonzero(wrong_scale)),
        max_scale_error=float(error.max()),
        first_wrong=f"{name}, {place(int(np.argmax(wrong)) // GROUP, trained.shape[1])}" if wrong.any() else None,
    )


def count_changed(trained: F32, kind: ExactType) -> int:
    """How many of the trained weights float32[rows, k], alpha not rounded, the type cannot hold but for that rounding.

    Its scales are taken to be the largest of each block. k is a multiple of the block.
    """
    alpha = _largest(trained, kind.block)
    return int(np.count_nonzero(_differ(kind.nearest(trained), trained, alpha) | _uneven(trained, alpha)))


def _largest(trained: F32, block: int) -> F32:
    """float32[rows, k] -> float32[rows, k/block]."""
    largest: F32 = np.abs(trained).reshape(len(trained), -1, block).max(axis=-1)
    return largest


def _differ(ternary: I8, trained: F32, alpha: F32) -> Bool:
    """bool[rows, k/block, block]: a sign or zero is not the trained one. Codes of a block of zeros mean nothing."""
    differ: Bool = (ternary != signs(trained)).reshape(*alpha.shape, -1) & (alpha != 0)[..., None]
    return differ


def _uneven(trained: F32, alpha: F32) -> Bool:
    """bool[rows, k/block, block]: a weight's magnitude in fp16 is not that of its block."""
    magnitudes = np.abs(trained).reshape(*alpha.shape, -1)
    uneven: Bool = (magnitudes != alpha[..., None]) & (magnitudes != 0)
    if uneven.any():
        uneven &= _in_fp16(magnitudes) != _in_fp16(alpha)[..., None]
    return uneven


def _in_fp16(values: F32) -> F16:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)
