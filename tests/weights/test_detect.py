"""The grid is read off the weights: each kind made by hand, and told apart."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.formats.sherry_2p import SHERRY_2P, pack_planes, unpack_planes
from sherry_gguf.weights.detect import Family, detect
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import expand, quantize
from sherry_gguf.weights.two_planes import round_planes


@pytest.fixture
def floats():
    return (np.random.default_rng(0).standard_normal((16, 512)) * 0.02).astype(np.float32)


@pytest.mark.parametrize(
    "granularity",
    [Granularity("per_group", n) for n in (32, 64, 128, 256)] + [Granularity("per_channel"), Granularity("per_tensor")],
)
def test_baked_sherry(floats, granularity):
    found = quantize(floats, granularity)
    look = detect(expand(found.codes, found.scales))
    assert look.family is Family.SHERRY
    assert look.grids == ("consecutive",)
    assert look.granularity == granularity
    assert look.zeros == 0.25


def test_baked_sherry_with_an_empty_block_and_an_empty_row(floats):
    floats[3, 128:256] = 0
    floats[5] = 0
    found = quantize(floats)
    assert detect(expand(found.codes, found.scales)).family is Family.SHERRY


@pytest.mark.parametrize("size", [32, 64])
def test_baked_sherry_with_many_empty_runs(floats, size):
    """The zeros are those of whole scale runs, and far more than one in a hundred."""
    floats.reshape(-1, size)[::11] = 0
    found = quantize(floats, Granularity("per_group", size))
    look = detect(expand(found.codes, found.scales))
    assert (look.family, look.grids) == (Family.SHERRY, ("consecutive",))
    assert look.granularity == Granularity("per_group", size)


def test_two_planes(floats):
    """Of any two scales, equal ones too; not if they are rounded in bf16, and not a float matrix of few values."""
    rounded = round_planes(floats)
    sums = SHERRY_2P.dequantize(rounded)
    assert detect(sums).family is Family.TWO_PLANES
    _, _, a, b = unpack_planes(rounded)
    assert (b > 0).all()
    codes = np.random.default_rng(1).integers(32, size=(2, 16, 128), dtype=np.uint8)
    assert detect(SHERRY_2P.dequantize(pack_planes(*codes, a, a))).family is Family.TWO_PLANES
    assert detect((sums.view(np.uint32) & 0xFFFF0000).view(np.float32)).family is not Family.TWO_PLANES
    sums[:, ::50] += 1e-3
    assert detect(sums).family is Family.FLOAT
    assert detect(sums[:0]).family is Family.FLOAT
    assert detect(np.sign(floats) * np.float32(0.5)).family is Family.BINARY


def test_float_weights(floats):
    floats[0, :7] = 0
    assert detect(floats).family is Family.FLOAT
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
    look = detect(strided)
    assert (look.family, look.grids, look.granularity) == (Family.SHERRY, ("stride16",), granularity)


def test_both_kinds_of_groups():
    """Zeros in every neighbourhood and at every place of 16, once; and where all weights are zeros."""
    weights = np.ones((2, 256), dtype=np.float32)
    for period in range(4):
        for four in range(16):  # place four // 4 of its neighbours: 4 * (four % 4) + four // 4 are 16 places
            weights[:, 64 * period + 4 * four + four // 4] = 0
    for given in (weights, np.zeros_like(weights)):
        look = detect(given)
        assert (look.family, look.grids) == (Family.SHERRY, ("consecutive", "stride16"))


def test_rows_too_short_for_weights_16_apart():
    assert detect(np.tile(np.array([0, 1, -1, 1], dtype=np.float32), (4, 24))).grids == ("consecutive",)


def test_dense_ternary(floats):
    scale = np.abs(floats).mean()
    ternary = np.clip(np.round(floats / scale), -1, 1) * scale
    look = detect(ternary.astype(np.float32))
    assert look.family is Family.TERNARY
    assert look.grids == ()
    assert look.granularity == Granularity("per_tensor")


def test_two_in_four_is_no_sherry(floats):
    groups = floats.reshape(-1, 4)
    groups[:, :2] = 0
    assert detect(groups.reshape(floats.shape)).family is Family.SPARSE
    assert detect(np.sign(floats)).family is Family.TERNARY


def test_masked_latents_are_sparse(floats):
    found = quantize(floats)
    masked = np.where(expand(found.codes, found.scales) == 0, 0, floats)
    assert detect(masked.astype(np.float32)).family is Family.SPARSE


@pytest.mark.filterwarnings("error")
def test_a_weight_that_is_no_number_is_no_warning():
    """A signalling NaN, for which NumPy warns where it is converted; the weight is refused by name elsewhere."""
    weights = np.ones((1, 32), dtype=np.float32)
    weights.view(np.uint32)[0, 0] = 0x7F800001
    detect(weights)
