"""SHERRY_2P in the runtime: the reference and rounding equal to NumPy, and a second plane that adds nothing.

Its operators are in test_operators_by_type.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from operands import random_blocks

from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.sherry_2p import SHERRY_2P, pack_planes
from sherry_gguf.weights.two_planes import round_planes

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize("k", [128, 384])
def test_reference_equals_numpy(ggml: Any, two_planes: Any, k: int) -> None:
    packed = random_blocks(SHERRY_2P, 20, k)
    weights = SHERRY_2P.dequantize(packed)
    importance = np.random.default_rng(0).exponential(1, k).astype(np.float32)
    np.testing.assert_array_equal(ggml.dequantize(packed, two_planes), weights)
    np.testing.assert_array_equal(ggml.quantize(weights, kind=two_planes), packed)
    np.testing.assert_array_equal(ggml.quantize(weights, importance, kind=two_planes), packed)
    assert ggml.is_valid(two_planes.type_id, packed)


def test_equal_scales_and_single_planes(ggml: Any, two_planes: Any) -> None:
    """Where there are several ways to write the weights, C takes the one that NumPy takes."""
    codes = np.random.default_rng(0).integers(0, CODES, (2, 8, 64), dtype=np.uint8)
    d = np.random.default_rng(1).uniform(0.01, 1, (8, 2)).astype(np.float16)
    for d1 in (d, d / 2, 0 * d, (d / 4000).astype(np.float16)):
        weights = SHERRY_2P.dequantize(pack_planes(*codes, d, d1))
        np.testing.assert_array_equal(ggml.quantize(weights, kind=two_planes), SHERRY_2P.pack(weights))


@pytest.mark.parametrize("case", ["alike", "importance", "zeros", "outliers"])
def test_rounding_equals_numpy(ggml: Any, two_planes: Any, case: str) -> None:
    rng = np.random.default_rng(3)
    weights = (0.02 * rng.standard_normal((16, 512))).astype(np.float32)
    importance = None if case == "alike" else rng.lognormal(0, 2, 512).astype(np.float32)
    if importance is not None and case == "zeros":
        importance[:128] = importance[200:250] = 0
        weights[3] = 0
        weights[5, 100:] = 0
    elif case == "outliers":
        weights = rng.standard_t(2, weights.shape).astype(np.float32)
    packed = ggml.quantize(weights, importance, kind=two_planes)
    np.testing.assert_array_equal(packed, round_planes(weights, importance))
    m = np.ones(512) if importance is None else importance
    wrong, all_of_it = m * (SHERRY_2P.dequantize(packed) - weights) ** 2, m * weights**2
    assert wrong.sum() < 0.07 * all_of_it.sum()


def test_importance_lowers_the_weighted_error(ggml: Any, two_planes: Any) -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((8, 256)).astype(np.float32)
    importance = rng.lognormal(0, 2, 256).astype(np.float32)
    losses = [
        (importance * (SHERRY_2P.dequantize(ggml.quantize(weights, m, kind=two_planes)) - weights) ** 2).sum()
        for m in (importance, None)
    ]
    assert losses[0] < 0.7 * losses[1]


def test_damaged_scales(ggml: Any, two_planes: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for high, said in ((0x7C, "not finite"), (0xBC, "negative")):
        packed = random_blocks(SHERRY_2P, 1, 256)
        packed[0, 44 + 43] = high
        assert not ggml.is_valid(two_planes.type_id, packed)
        assert f"scale of block 3 is {said}" in capfd.readouterr().err


def test_a_second_plane_of_zeros_changes_no_bit(ggml: Any, two_planes: Any) -> None:
    codes = np.random.default_rng(0).integers(0, CODES, (2, 70, 96), dtype=np.uint8)
    d = np.random.default_rng(1).uniform(0.01, 1, (70, 3)).astype(np.float16)
    packed = pack_planes(*codes, d, 0 * d)
    one_plane = np.ascontiguousarray(packed.reshape(70, 3, 44)[:, :, :22]).reshape(70, -1)
    x = np.random.default_rng(2).standard_normal((3, 384)).astype(np.float32)
    two = ggml.compute("mul_mat", packed, x, tiles=True, kind=two_planes)
    np.testing.assert_array_equal(two, ggml.compute("mul_mat", one_plane, x, tiles=True))
