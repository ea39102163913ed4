"""Rounding to two planes: what it costs, what it minds, and what it leaves as it is. C is held to it elsewhere."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.sherry_2p import SHERRY_2P, pack_planes, unpack_planes
from sherry_gguf.weights.two_planes import round_planes


@pytest.fixture
def weights():
    return np.random.default_rng(0).standard_normal((4, 384)).astype(np.float32)


def loss(weights, blocks, importance=1):
    return (importance * (SHERRY_2P.dequantize(blocks) - weights).astype(np.float64) ** 2).sum()


def test_importance_is_minded(weights):
    importance = np.random.default_rng(1).lognormal(0, 2, 384).astype(np.float32)
    with_it, without = round_planes(weights, importance), round_planes(weights)
    assert loss(weights, without) < 0.07 * (weights.astype(np.float64) ** 2).sum()
    assert loss(weights, with_it, importance) < 0.7 * loss(weights, without, importance)


def test_no_other_codes_cost_less(weights):
    """All 32 * 32 sums of a group are tried, under the scales that were found."""
    blocks = round_planes(weights)
    _, _, a, b = unpack_planes(blocks)
    assert (a >= b).all()
    for row, column in product(range(4), range(0, 384, 4)):
        d = a[row, column // 128], b[row, column // 128]
        sums = (PATTERNS[:, None] * np.float64(d[0]) + PATTERNS * np.float64(d[1])).reshape(-1, 4)
        group = slice(column, column + 4)
        least = ((weights[row, group] - sums) ** 2).sum(axis=1).min()
        found = SHERRY_2P.dequantize(blocks)[row, group]
        assert ((weights[row, group] - found.astype(np.float64)) ** 2).sum() <= least * (1 + 1e-6)


def test_blocks_that_are_two_planes_stay(weights):
    codes = np.random.default_rng(2).integers(0, 32, (2, 4, 96), dtype=np.uint8)
    d = np.array([[0.5, 2, 1]] * 4, dtype=np.float16)
    exact = pack_planes(*codes, d, d / 3)
    mixed = SHERRY_2P.dequantize(exact)
    mixed[:, 128:256] = weights[:, 128:256]
    found = round_planes(mixed).reshape(4, 3, 44)
    assert np.array_equal(found[:, ::2], exact.reshape(4, 3, 44)[:, ::2])
    assert not np.array_equal(SHERRY_2P.dequantize(found[:, 1]), weights[:, 128:256])


def test_zeros_and_importance_of_zero(weights):
    weights[1] = 0
    importance = np.zeros(384, dtype=np.float32)
    assert np.array_equal(round_planes(weights, importance), round_planes(weights))
    assert not round_planes(weights)[1].any()


def test_what_cannot_be_rounded(weights):
    weights[2, 7] = np.nan
    with pytest.raises(SherryError, match="1 weights are not finite"):
        round_planes(weights)
    with pytest.raises(SherryError, match="1 blocks have weights that are too large for fp16"):
        round_planes(np.full((1, 128), 3e38, dtype=np.float32) * np.linspace(0.5, 1, 128, dtype=np.float32))
