"""What a matrix looks like: plain floats, Sherry, or the values that a relative of Sherry's gives its weights.

All is read off the weights themselves, so that a checkpoint without a word of explanation is told for what it is.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.groups import GRIDS, GROUP, PERIOD, Grid, to_fours
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import PIECE

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

# A float matrix has few exact zeros, a 3:4 sparse one a quarter. In between nothing is known to exist.
_SPARSE = 0.1
# A matrix is of a grid or family even if a few of its groups or scale runs were damaged; reading it names the place.
MOST_GROUPS = 0.99
_MOST_RUNS = 0.9

_SHORTEST_RUN = 32  # weights that share a scale in any published trainer
_MOST_LEVELS = 4  # of two bits
_SAME = 0.02  # two levels are one if they differ by less: bf16 rounds each weight of a group by itself
_MAIN_LEVEL = 0.05  # the share of a scale run's weights that makes a level of the method, not an outlier
_LEVEL_RUNS = 64  # scale runs that are looked at for levels


class Family(Enum):
    """What the weights of a matrix are."""

    FLOAT = "floating-point weights without a pattern of zeros (plain, or the latents of a quantizer)"
    SHERRY = "ternary, one zero in every group of 4 weights (Sherry, baked)"
    TWO_PLANES = "the sum of two ternary planes, each with one zero in every group of 4 weights (SHERRY_2P, baked)"
    TERNARY = "dense ternary, with no fixed number of zeros in 4 weights"
    SPARSE = "sparse, with magnitudes that are not shared"
    ROUNDED = "dense ternary but for rounding in bf16 (absmean or twn, baked)"
    BINARY = "binary: two values of equal magnitude"
    SEQ = "four levels, 1 and 3 halves of a scale with both signs (seq, baked)"
    OFFSET = "ternary plus an offset (dlt, baked)"
    LEVELS = "quantized to a few levels, and not ternary"


@dataclass(frozen=True)
class Look:
    """family; zeros: share of zeros.

    granularity  the coarsest that the magnitudes have, for SHERRY and TERNARY
    grids        in whose groups there is one zero, for SHERRY: one, or both (most likely as all weights are zeros)
    """

    family: Family
    zeros: float
    granularity: Granularity | None = None
    grids: tuple[Grid, ...] = ()


@np.errstate(invalid="ignore", over="ignore")  # of weights that are not finite, which are refused by name later
def detect(weights: F32) -> Look:
    """float32[rows, k] -> Look. A sample of rows will do; a granularity then is that of the sample."""
    zero = weights == 0
    share = float(zero.mean()) if zero.size else 0.0
    k = weights.shape[1]
    if k % GROUP:
        return Look(Family.FLOAT, share)
    granularity = None if share < _SPARSE else _shared_magnitudes(weights)
    if granularity is None:
        if _is_two_planes(weights):
            return Look(Family.TWO_PLANES, share)
        return Look(_family_of_levels(weights) or (Family.FLOAT if share < _SPARSE else Family.SPARSE), share)
    grids = tuple(grid for grid in GRIDS if k % PERIOD[grid] == 0 and _one_zero_each(zero, grid, granularity))
    return Look(Family.SHERRY if grids else Family.TERNARY, share, granularity, grids)


def _is_two_planes(weights: F32) -> bool:
    """float32[rows, k] -> is almost every weight of it what SHERRY_2P's blocks would give back?"""
    if not weights.size or weights.shape[1] % SHERRY_2P.block:
        return False
    return SHERRY_2P.count_wrong(weights) <= (1 - MOST_GROUPS) * weights.size


def _one_zero_each(zero: Bool, grid: Grid, granularity: Granularity) -> bool:
    """zero bool[rows, k] -> do almost all groups have one zero, but for those in an all-zero piece?"""
    shared = granularity.group_size if granularity.sharing == "per_group" else PIECE
    piece = max(math.gcd(zero.shape[1], shared, PIECE), PERIOD[grid])
    count = to_fours(zero, grid).reshape(-1, GROUP).sum(axis=1)
    return bool(((count == 1) | _empty_pieces(zero, piece)).mean() >= MOST_GROUPS)


def _empty_pieces(zero: Bool, piece: int) -> Bool:
    """zero bool[rows, k] -> bool[rows*k/4]: the group lies in a piece of zeros."""
    return zero.reshape(-1, piece).all(axis=1).repeat(piece // GROUP)


def _shared_magnitudes(weights: F32) -> Granularity | None:
    """The coarsest granularity at which almost all scale runs have one non-zero magnitude; None if not even 8 do."""
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


def _family_of_levels(weights: F32) -> Family | None:
    """The family of weights that have a few values in almost every scale run; None where there are many values."""
    k = weights.shape[1]
    if k % _SHORTEST_RUN:
        return None
    runs = weights.reshape(-1, _SHORTEST_RUN)
    runs = runs[runs.any(axis=1)][:_LEVEL_RUNS]
    if not len(runs):
        return None
    families = [_family_of_scale_run(part) for part in runs]
    if families.count(None) > (1 - _MOST_RUNS) * len(families):
        return None
    # a scale run that has only some of the levels looks like another family
    return Counter(family for family in families if family is not None).most_common(1)[0][0]


def _family_of_scale_run(weights: F32) -> Family | None:
    """float32[32] -> the family whose levels these are; None for too many values to be levels."""
    levels = _levels(weights)
    if not 1 < len(levels) <= _MOST_LEVELS:
        return None
    low, high = levels[0], levels[-1]
    tolerance = 2 * _SAME * (high - low)

    def are(*expected: float) -> bool:
        return len(levels) == len(expected) and bool(np.allclose(levels, expected, rtol=0, atol=tolerance))

    symmetric = abs(high + low) <= tolerance
    if symmetric and are(low, high):
        return Family.BINARY
    if symmetric and are(low, 0, high):
        return Family.ROUNDED
    if symmetric and are(low, low / 3, high / 3, high):
        return Family.SEQ
    if are(low, (low + high) / 2, high):
        return Family.OFFSET
    return Family.LEVELS


def _levels(weights: F32) -> npt.NDArray[np.float64]:
    """float32[n] -> the values that many of its weights have, ascending; too many where the rest is no few outliers."""
    values = np.sort(weights.astype(np.float64))
    gap = _SAME * (values[-1] - values[0])
    clusters = np.split(values, np.flatnonzero(np.diff(values) > gap) + 1)
    main = [cluster for cluster in clusters if len(cluster) >= max(2, _MAIN_LEVEL * len(weights))]
    if sum(map(len, main)) < _MOST_RUNS * len(weights) or any(np.ptp(cluster) > gap for cluster in main):
        return values
    return np.array([cluster.mean() for cluster in main])
