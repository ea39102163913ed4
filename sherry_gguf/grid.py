"""Which grid a weight matrix lies on, read off the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from sherry_gguf.format import BLOCK, GROUP
from sherry_gguf.quantize import Granularity

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

# A float matrix has few exact zeros, a 3:4 sparse one a quarter. In between nothing is known to exist.
_SPARSE = 0.1
# A matrix belongs to a grid even if a few of its groups or runs were damaged; reading it then names the place.
_MOST_GROUPS = 0.99
_MOST_RUNS = 0.9
_STRIDE = 16  # STQ1_0's groups take every 16th weight of a run of 64 (llama.cpp PR 22836)


class Kind(Enum):
    """What the weights of a matrix look like."""

    FLOAT = "floating-point weights without a pattern of zeros (plain, or the latents of a quantizer)"
    SHERRY = "ternary, one zero in every 4 consecutive weights (Sherry, baked)"
    STRIDE_16 = "ternary, one zero in every 4 weights 16 apart (the grid of STQ1_0)"
    TERNARY = "dense ternary, with no fixed number of zeros in 4 weights"
    SPARSE = "sparse, with magnitudes that are not shared"


@dataclass(frozen=True)
class Grid:
    """kind; granularity: the coarsest that the magnitudes have (for ternary kinds); zeros: share of zeros."""

    kind: Kind
    zeros: float
    granularity: Granularity | None = None


def detect(weights: F32) -> Grid:
    """float32[rows, k] -> Grid. A sample of rows will do; a granularity then is that of the sample."""
    zero = weights == 0
    share = float(zero.mean()) if zero.size else 0.0
    k = weights.shape[1]
    if share < _SPARSE or k % GROUP:
        return Grid(Kind.FLOAT, share)
    granularity = _shared_magnitudes(weights)
    if granularity is None:
        return Grid(Kind.SPARSE, share)
    if _one_zero_each(zero.reshape(-1, GROUP), _empty_blocks(zero)):
        return Grid(Kind.SHERRY, share, granularity)
    strided = _STRIDE * GROUP
    if k % strided == 0:
        lanes = zero.reshape(-1, GROUP, _STRIDE).swapaxes(1, 2)  # [runs of 64, group, lane]
        if _one_zero_each(lanes.reshape(-1, GROUP), lanes.all(axis=(1, 2)).repeat(_STRIDE)):
            return Grid(Kind.STRIDE_16, share, granularity)
    return Grid(Kind.TERNARY, share, granularity)


def _one_zero_each(groups: Bool, exempt: Bool) -> bool:
    """zero bool[n, 4], exempt bool[n] (groups of an all-zero block) -> do almost all others have one zero?"""
    return bool(((groups.sum(axis=1) == 1) | exempt).mean() >= _MOST_GROUPS)


def _empty_blocks(zero: Bool) -> Bool:
    """zero bool[rows, k] -> bool[rows*k/4]: the group lies in a block (or in a row that is shorter) of zeros."""
    span = int(np.gcd(zero.shape[1], BLOCK))
    return zero.reshape(-1, span).all(axis=1).repeat(span // GROUP)


def _shared_magnitudes(weights: F32) -> Granularity | None:
    """The coarsest granularity at which almost all runs have one non-zero magnitude; None if not even 8 weights do."""
    rows, k = weights.shape
    magnitudes = np.abs(weights)

    def constant(runs: F32) -> bool:
        largest = runs.max(axis=1, keepdims=True)
        return bool(((runs == largest) | (runs == 0)).all(axis=1).mean() >= _MOST_RUNS)

    if constant(magnitudes.reshape(1, -1)) and rows > 1:
        return Granularity("per_tensor")
    if constant(magnitudes):
        return Granularity("per_channel")
    size = 1 << (k & -k).bit_length() - 1  # the largest power of two that divides a row
    while size >= 2 * GROUP:
        if constant(magnitudes.reshape(-1, size)):
            return Granularity("per_group", size)
        size //= 2
    return None
