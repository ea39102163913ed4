"""What the layouts without group codes share: a block is an fp16 scale d and a code for each weight, which is t * d."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats.groups import signs
from sherry_gguf.formats.planes import Planes
from sherry_gguf.formats.scales import nearest

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

SHIFTS: Final = np.array([0, 2, 4, 6], dtype=np.uint8)  # of four codes in a byte


def largest_and_signs(weights: F32, block: int) -> tuple[I8, F16]:
    """float32[rows, n*block] -> t int8[rows, n, block]: -1, 0 or 1, d float16[rows, n]: the largest magnitude."""
    blocks = weights.reshape(len(weights), weights.shape[1] // block, block)
    return signs(blocks), nearest(np.abs(blocks).max(axis=-1))


def assemble(dtype: np.dtype[np.void], d: F16, **fields: U8) -> U8:
    """d float16[rows, n] and the other fields uint8[rows, n, bytes] -> uint8[rows, n * itemsize]."""
    out = np.empty(d.shape, dtype=dtype)
    out["d"] = d
    for name, value in fields.items():
        out[name] = value
    return out.view(np.uint8).reshape(len(d), d.shape[1] * dtype.itemsize)


def take_apart(codes: npt.NDArray[Any], zero: int, d: F16) -> Planes:
    """Codes [rows, n, ...] in the order of the weights, the code of 0, d float16[rows, n] -> Planes."""
    t = codes.astype(np.int8) - np.int8(zero)
    return Planes(t.reshape(1, len(d), -1), d[None])
