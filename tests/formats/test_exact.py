"""Blocks of codes that are written without being decoded: the bytes of the slow way, and none where that refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.table import tensor_types

TYPES = [tensor_type for tensor_type in tensor_types() if tensor_type.codes is not None and tensor_type.planes == 1]


def matrix(tensor_type, rows=6, blocks=8, seed=0):
    """float32[rows, k]: every code, scales from the least to the largest of fp16."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(PATTERNS), (rows, blocks, tensor_type.block // 4))
    scales = rng.integers(1, 0x7C00, (rows, blocks, 1, 1)).astype(np.uint16).view(np.float16).astype(np.float32)
    fours = (PATTERNS[codes] * scales).astype(np.float32).reshape(rows, -1)
    if tensor_type.grid == "stride16":
        fours = fours.reshape(rows, -1, 16, 4).swapaxes(-1, -2).reshape(rows, -1)
    return np.ascontiguousarray(fours)


@pytest.mark.parametrize("tensor_type", TYPES, ids=lambda t: t.name)
def test_bytes_are_those_of_the_slow_way(tensor_type):
    for seed in range(20):
        weights = matrix(tensor_type, seed=seed)
        found = tensor_type.codes.encode_exact(weights)
        assert np.array_equal(found, tensor_type.encode(weights))
        assert np.array_equal(tensor_type.dequantize(found), weights)


@pytest.mark.parametrize("tensor_type", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e-30, "half", "next"])
def test_one_weight_that_does_not_fit_is_left_to_the_slow_way(tensor_type, value):
    weights = matrix(tensor_type)
    row, column = np.argwhere(weights)[77]
    w = weights[row, column]
    weights[row, column] = {"half": w / 2, "next": np.nextafter(w, np.float32(0))}.get(value, value)
    assert tensor_type.codes.encode_exact(weights) is None
    with pytest.raises(SherryError), np.errstate(invalid="ignore", over="ignore"):
        tensor_type.pack(weights)


@pytest.mark.parametrize("tensor_type", TYPES, ids=lambda t: t.name)
def test_blocks_of_zeros_take_the_slow_way(tensor_type):
    weights = matrix(tensor_type)
    weights[2, : tensor_type.block] = 0
    assert tensor_type.codes.encode_exact(weights) is None
    assert np.array_equal(tensor_type.dequantize(tensor_type.pack(weights)), weights)


def test_negative_zeros_are_zeros():
    for tensor_type in TYPES:
        weights = matrix(tensor_type)
        assert np.array_equal(
            tensor_type.pack(np.where(weights == 0, np.float32(-0.0), weights)), tensor_type.pack(weights)
        )
        assert replace(tensor_type, codes=None).encode(weights).tobytes() == tensor_type.pack(weights).tobytes()
