"""Which grid a weight matrix lies on, read off the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from sherry_gguf.format import BLOCK, GROUP
from sherry_gguf.groups import GROUPS, RUN, Groups, to_fours
from sherry_gguf.quantize import Granularity

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

# A float matrix has few exact zeros, a 3:4 sparse one a quarter. In between nothing is known to exist.
_SPARSE = 0.1
# A matrix belongs to a grid even if a few of its groups or runs were damaged; reading it then names the place.
MOST_GROUPS = 0.99
_MOST_RUNS = 0.9


class Kind(Enum):
    """What the weights of a matrix look like."""

    FLOAT = "floating-point weights without a pattern of zeros (plain, or the latents of a quantizer)"
    SHERRY = "ternary, one zero in every group of 4 weights (Sherry, baked)"
    TERNARY = "dense ternary, with no fixed number of zeros in 4 weights"
    SPARSE = "sparse, with magnitudes that are not shared"


@dataclass(frozen=True)
class Grid:
    """kind; zeros: share of zeros.

    granularity  the coarsest that the magnitudes have, for ternary kinds
    groups       of which each has one zero, for SHERRY: of one kind, or of both (most likely as all weights are zeros)
    """

    kind: Kind
    zeros: float
    granularity: Granularity | None = None
    groups: tuple[Groups, ...] = ()


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
    groups = tuple(groups for groups in GROUPS if k % RUN[groups] == 0 and _one_zero_each(zero, groups))
    return Grid(Kind.SHERRY if groups else Kind.TERNARY, share, granularity, groups)


def _one_zero_each(zero: Bool, groups: Groups) -> bool:
    """zero bool[rows, k] -> do almost all groups have one zero, but for those in an all-zero block?"""
    count = to_fours(zero, groups).reshape(-1, GROUP).sum(axis=1)
    return bool(((count == 1) | _empty_blocks(zero)).mean() >= MOST_GROUPS)


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
