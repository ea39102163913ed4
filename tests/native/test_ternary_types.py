"""Upstream's ternary types in C: what our codecs write it reads as the same values, and the reverse."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf.formats.table import named
from sherry_gguf.formats.tensor_type import TensorType

pytestmark = pytest.mark.runtime

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@pytest.fixture(params=["TQ1_0", "TQ2_0", "Q2_0", "Q4_0"])
def kind(request: pytest.FixtureRequest) -> TensorType:
    return named(request.param)


@pytest.fixture
def quantize(pinned_gguf: Any) -> Callable[[TensorType, F32], U8]:
    """As the converter does it."""
    from sherry_gguf.formats.registration import use_exact_q4_0

    use_exact_q4_0()

    def as_converted(kind: TensorType, weights: F32) -> U8:
        if kind.name == "Q2_0":  # whose encoder takes any weights, as the C reference does
            return kind.encode(weights)
        return pinned_gguf.quants.quantize(weights, pinned_gguf.GGMLQuantizationType[kind.name])

    return as_converted


def dequantize_in_c(ggml: Any, kind: TensorType, data: U8) -> F32:
    out = np.empty((len(data), data.shape[1] // kind.block_bytes * kind.block), dtype=np.float32)
    function = getattr(ggml.base, f"dequantize_row_{kind.name.lower()}")
    function(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
    return out


def quantize_in_c(ggml: Any, kind: TensorType, weights: F32) -> U8:
    out = np.empty((len(weights), weights.shape[1] // kind.block * kind.block_bytes), dtype=np.uint8)
    function = getattr(ggml.base, f"quantize_row_{kind.name.lower()}_ref")
    function(ctypes.c_void_p(weights.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(weights.size))
    return out


def ternary_weights(kind: TensorType) -> F32:
    """Four blocks a row, each of one fp16 magnitude, from the smallest subnormal to the largest number."""
    rng = np.random.default_rng(kind.block)
    scales = np.geomspace(2.0**-24, 65504, 100).astype(np.float16).astype(np.float32).reshape(25, 4, 1)
    t = rng.integers(-1, 2, (25, 4, kind.block))
    t[3, 2] = 0
    return (t * scales).astype(np.float32).reshape(25, -1)


def test_c_reads_the_very_values(ggml: Any, quantize: Any, kind: TensorType, pinned_gguf: Any) -> None:
    weights = ternary_weights(kind)
    data = quantize(kind, weights)
    assert np.array_equal(dequantize_in_c(ggml, kind, data), weights)
    assert ggml.is_valid(pinned_gguf.GGMLQuantizationType[kind.name].value, data)


def test_any_bytes_are_read_as_c_reads_them(ggml: Any, kind: TensorType) -> None:
    """All but scales that are not finite; bytes that the encoder of TQ1_0 never makes among them."""
    rng = np.random.default_rng(kind.block_bytes)
    data = rng.integers(0, 256, (64, 4 * kind.block_bytes), dtype=np.uint8)
    data = data[np.isfinite(kind.decode(data).folded()[1]).all(axis=1)]
    assert len(data) > 32
    t, d = kind.decode(data).folded()
    assert np.array_equal((t.reshape(*d.shape, -1) * d[..., None]).reshape(t.shape), dequantize_in_c(ggml, kind, data))


def test_bytes_are_those_of_the_c_reference(ggml: Any, quantize: Any, kind: TensorType) -> None:
    """For ternary weights; Q2_0 for all others as well. Q4_0's reference changes those of one sign, a third of all."""
    weights = ternary_weights(kind)
    in_c = quantize_in_c(ggml, kind, weights)
    if kind.name == "Q4_0":
        assert (dequantize_in_c(ggml, kind, in_c) != weights).mean() > 0.3
        return
    assert np.array_equal(quantize(kind, weights), in_c)
    if kind.name == "Q2_0":
        floats = np.random.default_rng(1).standard_normal((200, 256)).astype(np.float32)
        floats[0, :64] = np.linspace(-1, 1, 64)
        floats[1, :3] = 0.5, -0.5, 1  # halfway
        floats[1, 3:64] = 0
        assert np.array_equal(quantize(kind, floats), quantize_in_c(ggml, kind, floats))
