"""The C reference: bytes equal to the NumPy oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from operands import IMPORTANCE, importance_of

from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, PATTERNS
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.weights.quantize import expand, quantize

pytestmark = pytest.mark.runtime

F32 = npt.NDArray[np.float32]
Q8_SHERRY = 513
D = slice(20, 22)


def oracle(weights: F32) -> npt.NDArray[np.uint8]:
    quantized = quantize(weights, ties="first")
    return sherry.BLOCKS.pack(quantized.codes, quantized.scales)


def on_grid(rows: int, k: int, seed: int = 0) -> F32:
    """Random codes and random fp16 scales, the smallest subnormal and the largest number among them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (rows, k // 4), dtype=np.uint8)
    scales = rng.uniform(1e-3, 1, (rows, k // SHERRY.block)).astype(np.float16).astype(np.float32)
    scales[0, 0], scales[-1, -1] = 2.0**-24, 65504
    return expand(codes, scales)


def test_golden_bytes(ggml: Any) -> None:
    # group 0: (0, 1.5, 1.5, 1.5) = index 0; group 1: (-1.5, 0, 1.5, -1.5) = sign, zero_pos 1, second differs = 5;
    # group 16: (1.5, 1.5, -1.5, 0) = zero_pos 3, third differs = 14; all others (1.5, 1.5, 0, 1.5) = index 8
    weights = np.tile(np.array([1.5, 1.5, 0, 1.5], dtype=np.float32), (1, 32))
    weights[0, 0:4] = 0, 1.5, 1.5, 1.5
    weights[0, 4:8] = -1.5, 0, 1.5, -1.5
    weights[0, 64:68] = 1.5, 1.5, -1.5, 0
    expected = bytes.fromhex("e085" + "88" * 14 + "02000000" + "003e")
    assert ggml.quantize(weights).tobytes() == expected
    np.testing.assert_array_equal(ggml.dequantize(np.frombuffer(expected, np.uint8).reshape(1, -1)), weights)


@pytest.mark.parametrize("k", [128, 384, 640, 4224])
def test_quantize_equals_the_oracle(ggml: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    weights = (rng.standard_normal((9, k)) * 0.02).astype(np.float32)
    weights[1] = np.where(weights[1] < 0, -0.5, 0.5)  # every group tied four ways
    weights[2] = np.round(weights[2] * 100) / 100 + np.float32(0.005)  # many ties
    weights[3, : SHERRY.block] = 0
    weights[4] *= np.float32(1e-36)  # subnormal floats: the scale rounds to 0
    weights[5, ::4] = -0.0
    bad_scale = weights[4:5]
    np.testing.assert_array_equal(
        ggml.quantize(bad_scale), np.zeros((1, k // SHERRY.block * SHERRY.block_bytes), np.uint8)
    )
    good = np.delete(weights, 4, axis=0)
    np.testing.assert_array_equal(ggml.quantize(good), oracle(good))


def test_quantize_rounds_scales_as_the_oracle_does(ggml: Any) -> None:
    """Scales across all of fp16: subnormal, halfway between two numbers, near the largest."""
    scales = np.geomspace(6e-8, 65500, 4000).astype(np.float32)[:, None]
    halves = np.arange(1, 4000, dtype=np.uint16).view(np.float16).astype(np.float32)[:, None]
    halfway = (halves[1:] + halves[:-1]) / 2
    for magnitudes in (scales, halfway):
        weights = expand(np.zeros((len(magnitudes), 32), np.uint8), magnitudes)
        np.testing.assert_array_equal(ggml.quantize(weights), oracle(weights))


@pytest.mark.parametrize("k", [128, 384, 4224])
def test_dequantize_equals_the_oracle(ggml: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    data = rng.integers(0, 256, (7, k // SHERRY.block, SHERRY.block_bytes), dtype=np.uint8)
    data[..., D] = rng.integers(0, 0x7C00, (7, k // SHERRY.block), dtype=np.uint16).view(np.uint8).reshape(7, -1, 2)
    data = data.reshape(7, -1)
    np.testing.assert_array_equal(ggml.dequantize(data).view(np.uint32), sherry.SHERRY.dequantize(data).view(np.uint32))


def test_every_code_in_every_position(ggml: Any) -> None:
    codes = np.add.outer(np.arange(CODES), np.arange(32)).astype(np.uint8) % CODES
    data = sherry.BLOCKS.pack(codes, np.ones((CODES, 1), np.float32))
    expected = PATTERNS[codes].reshape(CODES, SHERRY.block).astype(np.float32)
    np.testing.assert_array_equal(ggml.dequantize(data), expected)
    np.testing.assert_array_equal(ggml.quantize(expected), data)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_weights_on_the_grid_stay_as_they_are(ggml: Any, importance: str) -> None:
    weights = on_grid(8, 384)
    weights[3, 128:256] = 0
    m = importance_of(importance, 384)
    data = ggml.quantize(weights, m)
    np.testing.assert_array_equal(ggml.dequantize(data), weights)
    np.testing.assert_array_equal(data, sherry.SHERRY.pack(weights))


def test_a_scale_that_is_no_fp16_number_keeps_its_codes(ggml: Any) -> None:
    codes = np.random.default_rng(2).integers(0, CODES, (4, 96), dtype=np.uint8)
    scales = np.full((4, 3), 0.1, np.float32)
    data = ggml.quantize(expand(codes, scales), np.ones(384, np.float32))
    np.testing.assert_array_equal(data, sherry.BLOCKS.pack(codes, scales))


def test_importance_lowers_the_weighted_error(ggml: Any) -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((16, 1024)).astype(np.float32)
    m = rng.exponential(1, 1024).astype(np.float32) ** 2

    def error(importance: F32 | None) -> npt.NDArray[np.float64]:
        difference = weights.astype(np.float64) - ggml.dequantize(ggml.quantize(weights, importance))
        per_block: npt.NDArray[np.float64] = (m * difference**2).reshape(-1, SHERRY.block).sum(axis=1)
        return per_block

    plain, fitted = error(None), error(m)
    assert (fitted <= plain * (1 + 2.0**-10)).all()  # the scale is rounded to fp16 after the fit
    assert fitted.sum() < 0.9 * plain.sum()


def test_importance_of_zero_is_the_trainers_rule(ggml: Any) -> None:
    weights = np.random.default_rng(4).standard_normal((4, 256)).astype(np.float32)
    np.testing.assert_array_equal(ggml.quantize(weights, np.zeros(256, np.float32)), oracle(weights))


def test_important_weights_too_small_for_fp16_do_not_erase_the_others(ggml: Any) -> None:
    weights = np.random.default_rng(5).standard_normal((1, SHERRY.block)).astype(np.float32)
    weights[0, :4] = 1e-9, -2e-9, 3e-9, 4e-9
    only_these = np.zeros(SHERRY.block, np.float32)
    only_these[:4] = 1
    np.testing.assert_array_equal(ggml.quantize(weights, only_these), oracle(weights))


def test_changed_groups(ggml: Any) -> None:
    weights = on_grid(1, 768)
    assert ggml.changed_groups(weights) == 0
    weights[0, 128:256] = 0  # a block of zeros has a code
    assert ggml.changed_groups(weights) == 0
    weights[0, 256:264] = 0, 0, 1, 1, 0, 0, 0, 0
    assert ggml.changed_groups(weights) == 2
    weights[0, 384:512] *= 2.0**-30 / np.abs(weights[0, 384:512]).max()
    assert ggml.changed_groups(weights) == 2 + 32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("position", [0, 1, 127])
def test_what_does_not_fit_never_becomes_a_weight(ggml: Any, value: float, position: int) -> None:
    weights = on_grid(1, 256)
    weights[0, 128 + position] = value
    for m in (None, np.ones(256, np.float32)):
        data = ggml.quantize(weights, m)
        assert not ggml.is_valid(SHERRY.type_id, data)
        assert not np.isfinite(data[0, 22:][D].copy().view(np.float16)[0])


@pytest.mark.parametrize(
    ("d", "valid"),
    [(0, True), (1, True), (0x7BFF, True), (0x7C00, False), (0x7E00, False), (0x8000, False), (0xBC00, False)],
)
def test_validation(ggml: Any, d: int, valid: bool) -> None:
    data = oracle(on_grid(1, 384))
    assert ggml.is_valid(SHERRY.type_id, data)
    data[0, 22:44][D] = d & 0xFF, d >> 8
    assert ggml.is_valid(SHERRY.type_id, data) is valid
    assert not ggml.is_valid(SHERRY.type_id, data[:, :-1].copy())
