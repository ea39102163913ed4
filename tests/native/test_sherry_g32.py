"""SHERRY_G32 in the runtime: the reference equal to NumPy. Its operators are in test_operators_by_type.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from operands import random_blocks

from sherry_gguf.formats.sherry_g32 import SHERRY_G32

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize("k", [32, 96, 576])
def test_reference_equals_numpy(ggml: Any, g32: Any, k: int) -> None:
    packed = random_blocks(SHERRY_G32, 20, k)
    weights = SHERRY_G32.dequantize(packed)
    np.testing.assert_array_equal(ggml.dequantize(packed, g32), weights)
    np.testing.assert_array_equal(ggml.quantize(weights, kind=g32), packed)
    importance = np.random.default_rng(0).exponential(1, k).astype(np.float32)
    np.testing.assert_array_equal(ggml.quantize(weights, importance, kind=g32), packed)
    assert ggml.changed_groups(weights, g32) == 0
    assert ggml.is_valid(g32.type_id, packed)


def test_latents_become_the_trainer_s_values(ggml: Any, g32: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    groups = latents.reshape(-1, 8, 4)
    kept = np.ones(groups.shape, bool)
    np.put_along_axis(kept, np.abs(groups).argmin(axis=2, keepdims=True), False, axis=2)
    alpha = np.where(kept, np.abs(groups), 0).sum(axis=(1, 2), dtype=np.float64) / 24
    scales = alpha.astype(np.float32).astype(np.float16).astype(np.float32)
    expected = np.where(kept, np.sign(groups), 0) * scales[:, None, None]
    np.testing.assert_array_equal(ggml.dequantize(ggml.quantize(latents, kind=g32), g32), expected.reshape(8, 96))


def test_damaged_scales(ggml: Any, g32: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for high, said in ((0x7C, "not finite"), (0xBC, "negative")):
        packed = random_blocks(SHERRY_G32, 1, 64)
        packed[0, 13] = high
        assert not ggml.is_valid(g32.type_id, packed)
        assert f"ggml_validate_sherry_g32: scale of block 1 is {said}" in capfd.readouterr().err
