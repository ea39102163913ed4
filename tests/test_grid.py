"""The grid is read off the weights: each kind made by hand, and told apart."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.blocks import expand
from sherry_gguf.grid import Kind, detect
from sherry_gguf.quantize import Granularity, quantize


@pytest.fixture
def floats():
    return (np.random.default_rng(0).standard_normal((16, 512)) * 0.02).astype(np.float32)


@pytest.mark.parametrize(
    "granularity",
    [Granularity("per_group", n) for n in (32, 64, 128, 256)] + [Granularity("per_channel"), Granularity("per_tensor")],
)
def test_baked_sherry(floats, granularity):
    found = quantize(floats, granularity)
    grid = detect(expand(found.codes, found.scales))
    assert grid.kind is Kind.SHERRY
    assert grid.groups == ("consecutive",)
    assert grid.granularity == granularity
    assert grid.zeros == 0.25


def test_baked_sherry_with_an_empty_block_and_an_empty_row(floats):
    floats[3, 128:256] = 0
    floats[5] = 0
    found = quantize(floats)
    assert detect(expand(found.codes, found.scales)).kind is Kind.SHERRY


def test_float_weights(floats):
    floats[0, :7] = 0
    assert detect(floats).kind is Kind.FLOAT
    assert detect(floats).granularity is None


@pytest.mark.parametrize(
    "granularity",
    [Granularity("per_group", n) for n in (64, 128, 256)] + [Granularity("per_channel"), Granularity("per_tensor")],
)
def test_groups_of_weights_16_apart(floats, granularity):
    found = quantize(floats, granularity)
    # the same weights, but the groups' members 16 apart in every 64
    strided = expand(found.codes, found.scales).reshape(16, 8, 16, 4).swapaxes(2, 3).reshape(16, 512)
    strided[2, 256:] = 0
    grid = detect(strided)
    assert (grid.kind, grid.groups, grid.granularity) == (Kind.SHERRY, ("stride16",), granularity)


def test_both_kinds_of_groups():
    """Zeros in every neighbourhood and at every place of 16, once; and where all weights are zeros."""
    weights = np.ones((2, 256), dtype=np.float32)
    for run in range(4):
        for four in range(16):  # place four // 4 of its neighbours: 4 * (four % 4) + four // 4 are 16 places
            weights[:, 64 * run + 4 * four + four // 4] = 0
    for given in (weights, np.zeros_like(weights)):
        grid = detect(given)
        assert (grid.kind, grid.groups) == (Kind.SHERRY, ("consecutive", "stride16"))


def test_rows_too_short_for_weights_16_apart():
    assert detect(np.tile(np.array([0, 1, -1, 1], dtype=np.float32), (4, 24))).groups == ("consecutive",)


def test_dense_ternary(floats):
    scale = np.abs(floats).mean()
    ternary = np.clip(np.round(floats / scale), -1, 1) * scale
    grid = detect(ternary.astype(np.float32))
    assert grid.kind is Kind.TERNARY
    assert grid.groups == ()
    assert grid.granularity == Granularity("per_tensor")


def test_two_in_four_is_no_sherry(floats):
    groups = floats.reshape(-1, 4)
    groups[:, :2] = 0
    assert detect(groups.reshape(floats.shape)).kind is Kind.SPARSE
    assert detect(np.sign(floats)).kind is Kind.TERNARY


def test_masked_latents_are_sparse(floats):
    found = quantize(floats)
    masked = np.where(expand(found.codes, found.scales) == 0, 0, floats)
    assert detect(masked.astype(np.float32)).kind is Kind.SPARSE
