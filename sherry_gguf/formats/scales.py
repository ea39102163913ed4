"""Scales in fp16: from 5.96e-08, the smallest number that fp16 can tell from 0, to 65504."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.groups import GROUP, Grid, place

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

LARGEST: Final = float(np.finfo(np.float16).max)


class UnfitScales(SherryError):
    """Scales that fp16 cannot hold."""


def nearest(scales: F32) -> F16:
    """float32[...] -> float16[...], to nearest even; infinite where fp16 ends."""
    with np.errstate(over="ignore"):
        return scales.astype(np.float16)


def fit(scales: F32) -> Bool:
    """float32[...] -> bool[...]: finite, not negative, and neither 0 nor infinite just because it is in fp16."""
    d = nearest(scales)
    fits: Bool = np.isfinite(d) & (scales >= 0) & ((d != 0) | (scales == 0))
    return fits


def rounded(scales: F32) -> F32:
    """float32[...] -> float32[...]: rounded to fp16 where they fit, and as they are where they do not."""
    return np.where(fit(scales), nearest(scales), scales).astype(np.float32)


def rounded_weights(weights: F32) -> F32:
    """float32[...] -> float32[...]: ``rounded`` magnitudes with the signs that the weights have."""
    return np.copysign(rounded(np.abs(weights)), weights)


def require_fit(scales: F32, weights_per_scale: int, grid: Grid = "consecutive") -> None:
    """Raise UnfitScales, naming row and group, unless all scales float32[rows, k/weights_per_scale] ``fit``."""
    bad = ~fit(scales)
    if bad.any():
        first = int(np.argmax(bad))
        raise UnfitScales(
            f"{np.count_nonzero(bad)} scales do not fit fp16 (5.96e-08 to 65504), the first is "
            f"{float(scales.reshape(-1)[first]):g} in "
            f"{place(first * (weights_per_scale // GROUP), scales.shape[-1] * weights_per_scale, grid)}",
            Way.KEEP_SCALES,
        )


def require_sound(d: F16) -> None:
    """Raise SherryError, naming block and row, for a scale float16[rows, blocks] that no block of codes may have."""
    bad = ~np.isfinite(d) | np.signbit(d)
    if bad.any():
        row, block = divmod(int(np.argmax(bad)), d.shape[1])
        raise SherryError(f"block {block} of row {row} has the scale {d[row, block]}; the file is damaged")
