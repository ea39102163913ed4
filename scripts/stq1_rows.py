"""STQ1_0 row by row for bench_kernels.py: by its vec_dot, and as its public kernel is described (stq1_by_block.c)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from sherry_gguf.errors import SherryError

BLOCK_BYTES = 42
ROWS = 128


def stq1_rows(bench: Any) -> list[Any]:
    """Kernels of a Bench, checked: with scales of 1 they give integers, which equal NumPy's.

    The second one is there where the machine has AVX2.
    """
    ggml, columns, length = bench.ggml, bench.columns, bench.length
    rng = np.random.default_rng(0)
    type_id = ggml.type_id("stq1_0")
    packed = ggml.quantize(type_id, rng.standard_normal((ROWS, length)).astype(np.float32))
    packed[:, BLOCK_BYTES - 2 :: BLOCK_BYTES], packed[:, BLOCK_BYTES - 1 :: BLOCK_BYTES] = 0x00, 0x3C  # 1 as fp16
    weights = np.empty((ROWS, length), np.float32)
    pointers = ctypes.c_void_p(packed.ctypes.data), ctypes.c_void_p(weights.ctypes.data)
    ggml.base.dequantize_row_stq1_0(*pointers, ctypes.c_int64(weights.size))
    x = rng.integers(-127, 128, (columns, length)).astype(np.float32)
    x[:, ::128] = 127  # the scale is 1
    expected = x.astype(np.int64) @ weights.astype(np.int64).T

    traits = ggml.traits(type_id)
    ways = [("row-stq1_0", traits.vec_dot, traits.vec_dot_type)]
    if by_block := getattr(bench.loops.library, "stq1_by_block", None):
        ways.append(("row-stq1_0-by-block", ctypes.cast(by_block, ctypes.c_void_p).value, ggml.type_id("q8_K")))
    kernels = []
    for name, vec_dot, activations in ways:
        kernel = bench.row_kernel(name, "stq1_0", vec_dot, packed, ggml.activations(activations, x))
        rows = min(ROWS, kernel.rows)
        kernel.run(columns, 0, rows, 1)
        if not np.array_equal(kernel.result(rows), expected[:, :rows]):
            raise SherryError(f"{name} is wrong")
        kernels.append(kernel)
    return kernels
