"""What tests of several types share: weights of any shape, importance, products as near as float32 allows.

Tolerance: with activations rounded to int8 as the kernels round them, what is left is float32: one rounding of each
term, in the product of its scales, and one in each addition of a block, of partial sums not larger than the sum of
magnitudes (test_kernels.py). Of two planes each is such a sum, and it may be larger than the magnitudes of both
together are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.sherry_2p import pack_planes
from sherry_gguf.formats.tensor_type import TensorType

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def random_blocks(of: TensorType, *shape: int) -> U8:
    """shape [..., k] of weights -> blocks uint8[..., row_bytes]: any codes, scales from 0.01 to 1."""
    assert of.codes is not None
    rng = np.random.default_rng(sum(shape))
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = rng.integers(0, CODES, (of.planes, rows, k // 4), dtype=np.uint8)
    d = rng.uniform(0.01, 1, (of.planes, rows, k // of.block)).astype(np.float32)
    packed = of.codes.pack(codes[0], d[0]) if of.planes == 1 else pack_planes(*codes, d.max(axis=0), d.min(axis=0))
    return packed.reshape(*shape[:-1], -1)


IMPORTANCE = ["none", "random", "zero", "zero in places"]


def importance_of(case: str, k: int) -> F32 | None:
    """float32[k] for a case of IMPORTANCE."""
    return {
        "none": None,
        "random": np.random.default_rng(1).exponential(1, k).astype(np.float32),
        "zero": np.zeros(k, np.float32),
        "zero in places": (np.arange(k) % 3).astype(np.float32),
    }[case]


def dequantize(of: TensorType, packed: U8) -> F64:
    """blocks uint8[..., row_bytes] -> weights float64[..., k]"""
    flat = of.dequantize(packed.reshape(-1, packed.shape[-1])).astype(np.float64)
    return flat.reshape(*packed.shape[:-1], -1)


def assert_product(of: TensorType, result: F32, w: F64, x: F64) -> None:
    """result[..., rows] of w[..., rows, k] and x[..., k], whose values are those that the kernels multiply with."""
    expected = np.einsum("...rk,...k->...r", w, x)
    blocks = w.shape[-1] / of.block
    roundings = 1 + blocks if of.planes == 1 else 4 * (2 + blocks)
    tolerance = roundings * 2.0**-24 * np.einsum("...rk,...k->...r", np.abs(w), np.abs(x))
    assert (np.abs(result.reshape(expected.shape) - expected) <= tolerance).all()
