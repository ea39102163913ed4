"""Upstream's ternary types: bytes written out by hand from their layout, and what each can hold."""

from __future__ import annotations

import numpy as np
import pytest

from sherry_gguf.formats.q2_0 import Q2_0
from sherry_gguf.formats.q4_0 import Q4_0
from sherry_gguf.formats.table import named, tensor_types
from sherry_gguf.formats.tq2_0 import TQ2_0

NAMES = ("TQ1_0", "TQ2_0", "Q2_0", "Q4_0")

# Weights that are not 0, and the bytes of the block; the scale is 1.5 = fp16 0x3E00.
# TQ1_0: five zeros are 81 + 27 + 9 + 3 + 1 = 121, and ceil(256 / 243 * 121) = 0x80; four in qh are 120, 0x7F. With the
# first of five 1 202, 0xD5; the last of five -1 120, 0x7F; the first -1 40, 0x2B; the last 1 122, 0x81; with the first
# of four 1 201, 0xD4; the last of four -1 117, 0x7C.
# TQ2_0 and Q2_0: four zeros are 0b01010101 = 0x55; a 1 has the bits 10 in its place, a -1 has 00.
# Q4_0: two zeros are 0x88; a 1 is 9, a -1 is 7.
GOLDEN = {
    "TQ1_0": (
        {0: 1, 159: -1, 160: -1, 239: 1, 240: 1, 255: -1},
        "d5" + "80" * 30 + "7f" + "2b" + "80" * 14 + "81" + "d47f7f7c" + "003e",
    ),
    "TQ2_0": (
        {0: 1, 33: -1, 127: 1, 128: -1, 255: -1},
        "5651" + "55" * 29 + "95" + "54" + "55" * 30 + "15" + "003e",
    ),
    "Q2_0": ({0: 1, 5: -1, 63: 1}, "003e" + "5651" + "55" * 13 + "95"),
    "Q4_0": ({0: 1, 15: -1, 16: -1, 31: 1}, "003e" + "79" + "88" * 14 + "97"),
}


@pytest.fixture
def quantize(pinned_gguf):
    """name, float32[rows, k] -> bytes, as the converter writes them."""
    from sherry_gguf.formats.registration import use_exact_q4_0

    use_exact_q4_0()
    return lambda name, weights: pinned_gguf.quants.quantize(weights, pinned_gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes(name, quantize):
    tensor_type = named(name)
    places, golden = GOLDEN[name]
    t = np.zeros((1, tensor_type.block), dtype=np.int8)
    t[0, list(places)] = list(places.values())
    data = quantize(name, t * np.float32(1.5))
    assert data.tobytes().hex() == golden
    assert data.nbytes == tensor_type.block_bytes
    assert np.array_equal(tensor_type.pack(t * np.float32(1.5)), data)
    unpacked, scales = tensor_type.decode(data).folded()
    assert unpacked.dtype == np.int8
    assert np.array_equal(unpacked, t)
    assert np.array_equal(scales, [[1.5]])


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_of_fp16_and_every_place(name, quantize):
    """A block for each positive fp16 number, its signs at random; several blocks a row, and rows of zeros."""
    block = named(name).block
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    scales = np.concatenate([scales, np.zeros(9, dtype=np.float32)]).reshape(-1, 8)
    rng = np.random.default_rng(block)
    t = rng.integers(-1, 2, (*scales.shape, block), dtype=np.int8)
    t[..., rng.integers(block)] = 1
    t[scales == 0] = 0
    weights = (t * scales[..., None]).reshape(len(scales), -1)
    data = quantize(name, weights)
    assert np.array_equal(named(name).pack(weights), data)
    unpacked, found = named(name).decode(data).folded()
    assert np.array_equal(found, scales)
    assert not np.signbit(found).any()
    assert np.array_equal(unpacked, t.reshape(weights.shape))


def test_codes_beyond_the_ternary_are_read_as_they_are():
    assert Q2_0.decode(np.array([[0x00, 0x3C] + [0xFF] * 16], dtype=np.uint8)).t[0].tolist() == [[2] * 64]
    assert TQ2_0.decode(np.array([[0xFF] * 64 + [0x00, 0x3C]], dtype=np.uint8)).t[0].tolist() == [[2] * 256]
    t, d = Q4_0.decode(np.array([[0x00, 0xBC] + [0xF0] * 16], dtype=np.uint8)).folded()
    assert t.tolist() == [[-8] * 16 + [7] * 16]
    assert d == -1


def test_q2_0_in_gguf_py(pinned_gguf):
    q2_0 = pinned_gguf.GGMLQuantizationType.Q2_0
    assert (q2_0.value, pinned_gguf.LlamaFileType.MOSTLY_Q2_0.value) == (42, 41)
    assert pinned_gguf.GGML_QUANT_SIZES[q2_0] == (64, 18)
    weights = (np.random.default_rng(0).integers(-1, 2, (3, 7, 192)) * 0.25).astype(np.float32)
    weights[..., ::64] = 0.25
    packed = pinned_gguf.quants.quantize(weights, q2_0)
    assert packed.shape == (3, 7, 54)
    assert np.array_equal(pinned_gguf.quants.dequantize(packed, q2_0), weights)
    lazy = pinned_gguf.quants.quantize(pinned_gguf.LazyNumpyTensor.from_eager(weights), q2_0)
    assert np.array_equal(pinned_gguf.LazyNumpyTensor.to_eager(lazy), packed)


def test_q4_0_of_any_other_block_is_gguf_pys(pinned_gguf, quantize):
    """And a magnitude that is no fp16 number, whose eighth is one."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((5, 96)).astype(np.float32)
    weights[2, 32:64] = 1e5
    traits = pinned_gguf.quants._type_traits[pinned_gguf.GGMLQuantizationType.Q4_0]
    expected = traits.quantize_blocks(weights.reshape(-1, 32)).reshape(5, -1)
    assert np.array_equal(quantize("Q4_0", weights), expected)
    weights[1, 32:64] = rng.integers(-1, 2, 32) * 0.5
    found = quantize("Q4_0", weights)
    same = (found == expected).reshape(5, 3, 18).all(axis=-1)
    assert np.argwhere(~same).tolist() == [[1, 1]]
    t, d = Q4_0.decode(found).folded()
    assert np.array_equal(t[1, 32:64] * d[1, 1], weights[1, 32:64])


def test_the_list_is_in_order_of_size(pinned_gguf):
    sizes = [tensor_type.bits_per_weight for tensor_type in tensor_types()]
    assert sizes == sorted(sizes) == [1.3125, 1.375, 1.6875, 1.75, 2.0625, 2.25, 2.75, 4.5]
    for tensor_type in tensor_types():
        qtype = pinned_gguf.GGMLQuantizationType[tensor_type.name]
        assert pinned_gguf.GGML_QUANT_SIZES[qtype] == (tensor_type.block, tensor_type.block_bytes)
