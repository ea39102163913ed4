"""Weights of any kind rounded to two planes, each by itself: what ``llama-quantize`` does with an importance matrix.

sum(m * (w - a * c0 - b * c1)**2) is made small, block by block, m being the importance of a weight. For given scales
the best codes are found exactly: an element is the nearest of a + b and a - b, or b, a or 0 where a plane is 0, and
of the 16 pairs of zeros of a group the cheapest is taken. For given codes the scales are a least-squares fit. The two
steps take turns, from six starts. What this loses, error feedback does not: it is for where nothing else can be done.

ggml-sherry-2p.c does the same in the same order, so that its bytes are these, bit for bit.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import GROUP, codes_of
from sherry_gguf.formats.scales import LARGEST
from sherry_gguf.formats.sherry_2p import PLANE, decode, encode, is_one_plane, pack_planes

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

_RATIOS: Final = (1.0, 0.62, 0.36)  # of b to a, and sizes of a, to start with
_SIZES: Final = (1.0, 0.8)
_STEPS: Final = 3  # of each start
_LAST_STEPS: Final = 4  # of the best one


def round_planes(weights: F32, importance: F32 | None = None) -> U8:
    """float32[rows, n*128], importance float32[n*128] of the columns -> SHERRY_2P blocks uint8[rows, n*44].

    Without importance, and where a block has none, all weights count alike. A block of two planes stays what it is.
    Raises SherryError for weights that are not finite, and for scales that fp16 cannot hold.
    """
    rows, k = weights.shape
    if not np.isfinite(weights).all():
        raise SherryError(f"{np.count_nonzero(~np.isfinite(weights))} weights are not finite")
    blocks = weights.astype(np.float64).reshape(-1, PLANE.block)
    m = np.ones(k) if importance is None else importance.astype(np.float64)
    m = np.broadcast_to(m.reshape(1, -1, PLANE.block), (rows, k // PLANE.block, PLANE.block)).reshape(blocks.shape)
    has_some = _in_order(m) > 0
    m = np.where(has_some[:, None], m, 1.0)
    total = np.where(has_some, _in_order(m), float(PLANE.block))
    size = np.sqrt(_in_order(m * (blocks * blocks)) / (0.75 * total))  # of a single plane
    if (size > LARGEST).any():
        raise SherryError(f"{np.count_nonzero(size > LARGEST)} blocks have weights that are too large for fp16")

    best = _Best(blocks, m)
    for ratio, of_size in product(_RATIOS, _SIZES):
        a = of_size * size / np.sqrt(1 + ratio * ratio)
        b = ratio * a
        for _ in range(_STEPS):
            a, b = _solve(blocks, m, best.look(a, b))
    t = best.t
    for _ in range(_LAST_STEPS):
        t = best.look(*_solve(blocks, m, t))
    codes = [codes_of(plane).reshape(rows, -1) for plane in best.t]
    scales = [d.astype(np.float32).reshape(rows, -1) for d in best.d]
    rounded = pack_planes(codes[0], codes[1], scales[0], scales[1]).reshape(len(blocks), -1)
    in_blocks = weights.reshape(-1, PLANE.block)
    as_found = encode(in_blocks)
    is_exact = (decode(as_found).weights == in_blocks).all(axis=1) | is_one_plane(in_blocks)
    return np.where(is_exact[:, None], as_found, rounded).reshape(rows, -1)


class _Best:
    """The scales and codes of least loss so far, of each block."""

    def __init__(self, w: F64, m: F64) -> None:
        self.w, self.m = w, m
        self.loss = np.full(len(w), np.inf)
        self.t = np.zeros((2, *w.shape), dtype=np.int8)
        self.d = np.full((2, len(w)), np.nan, dtype=np.float16)

    def look(self, a: F64, b: F64) -> I8:
        """Scales float64[n], rounded to fp16 -> the best codes for them, int8[2, n, 128]."""
        with np.errstate(over="ignore"):
            d = np.stack([a, b]).astype(np.float32).astype(np.float16)
        t, loss = _choose(self.w, self.m, *d.astype(np.float64))
        better = loss < self.loss
        self.loss = np.where(better, loss, self.loss)
        self.t = np.where(better[:, None], t, self.t)
        self.d = np.where(better, d, self.d)
        return t


def _in_order(values: F64) -> F64:
    """float64[n, terms] -> float64[n]: sums whose terms are added from the first to the last, as C does."""
    found: F64 = np.cumsum(values, axis=1)[:, -1]
    return found


def _choose(w: F64, m: F64, a: F64, b: F64) -> tuple[I8, F64]:
    """The codes int8[2, n, 128] that cost least for these scales, and what they cost, float64[n]."""
    groups, weight = (x.reshape(len(w), -1, GROUP) for x in (w, m))
    v, a, b = np.abs(groups), a[:, None, None], b[:, None, None]

    def cost(magnitude: F64) -> F64:
        found: F64 = weight * ((v - magnitude) * (v - magnitude))
        return found

    with np.errstate(over="ignore", invalid="ignore"):
        of_sum, of_difference = cost(a + b), cost(a - b)
        is_sum = of_sum <= of_difference
        both = np.where(is_sum, of_sum, of_difference)
        first, second, none = cost(a) - both, cost(b) - both, weight * (v * v) - both
        pairs = list(product(range(GROUP), repeat=2))
        more = np.stack([none[..., i] if i == j else second[..., i] + first[..., j] for i, j in pairs], axis=-1)
        least = more.min(axis=-1)
        loss = _in_order((both[..., 0] + both[..., 1]) + (both[..., 2] + both[..., 3]) + least)
    chosen = more.argmin(axis=-1)[..., None]
    zero0, zero1 = (np.arange(GROUP) == zero for zero in (chosen // GROUP, chosen % GROUP))
    sign = np.where(groups < 0, np.int8(-1), np.int8(1))
    t0 = np.where(zero0, np.int8(0), sign)
    t1 = np.where(zero1, np.int8(0), np.where(zero0 | is_sum, sign, -sign))
    return np.stack([t0, t1]).reshape(2, *w.shape), loss


def _solve(w: F64, m: F64, t: I8) -> tuple[F64, F64]:
    """The scales of least squares for these codes, float64[n] each, the larger one first, none below 0."""
    t0, t1 = t.astype(np.float64)
    s00, s01, s11 = _in_order(m * (t0 * t0)), _in_order(m * (t0 * t1)), _in_order(m * (t1 * t1))
    r0, r1 = _in_order(m * w * t0), _in_order(m * w * t1)
    determinant = s00 * s11 - s01 * s01
    with np.errstate(divide="ignore", invalid="ignore"):
        is_regular = determinant > 1e-6 * (s00 * s11)
        x = np.where(is_regular, (r0 * s11 - r1 * s01) / determinant, 0.0)
        y = np.where(is_regular, (r1 * s00 - r0 * s01) / determinant, 0.0)
        alone = ~((x > 0) & (y > 0))  # one plane
        x = np.where(alone, np.where((s00 > 0) & (r0 > 0), r0 / s00, 0.0), x)
        y = np.where(alone, 0.0, y)
    return np.maximum(x, y), np.minimum(x, y)
