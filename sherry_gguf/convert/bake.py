"""One source layer onto SHERRY's grid, in the trainer's orientation and before any of upstream's rewriting.

Upstream permutes, stacks, splits and fuses rows. Scales per channel, tensor or 256 weights are those of the layer as
it was trained, so they are settled here; rows that already lie on the grid stay on it, whatever is done to their order.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from sherry_gguf.blocks import expand, read_grid, round_scales
from sherry_gguf.convert.plan import Source
from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK, GROUP
from sherry_gguf.groups import place
from sherry_gguf.quantize import Granularity, Quantized, quantize

F32 = npt.NDArray[np.float32]


def quantize_layer(weights: F32, source: Source, granularity: Granularity) -> Quantized:
    """float32[rows, k] -> codes and unrounded scales, as the plan says this layer is read."""
    if source == "baked":
        return _read_grid(weights)
    return quantize(weights, granularity, allow_bare_groups=source == "lossy")


def bake(weights: torch.Tensor, source: Source, granularity: Granularity, *, fp16_scales: bool = True) -> torch.Tensor:
    """[rows, k] or [experts, rows, k], any float dtype -> float32 of the same shape, on the grid.

    With fp16_scales the values are those that SHERRY's blocks give back, in whatever type the tensor is then stored.
    """
    matrices = weights.reshape(-1, *weights.shape[-2:])
    baked = np.empty(matrices.shape, dtype=np.float32)
    for i, matrix in enumerate(matrices):
        grid = quantize_layer(matrix.to(torch.float32).numpy(), source, granularity)
        scales = grid.scales
        if fp16_scales:
            scales = round_scales(scales, matrix.shape[1] // scales.shape[1]).astype(np.float32)
        baked[i] = expand(grid.codes, scales)
    return torch.from_numpy(baked.reshape(weights.shape))


def relative_error(weights: torch.Tensor, baked: torch.Tensor) -> float:
    """What forcing a plain layer onto the grid cost: |baked - weights| / |weights|, Frobenius norms."""
    difference = torch.linalg.vector_norm(baked - weights, dtype=torch.float64)
    return float(difference / torch.linalg.vector_norm(weights, dtype=torch.float64).clamp_min(1e-300))


def _read_grid(weights: F32) -> Quantized:
    """Weights that are on the grid, float32[rows, k] -> their codes and magnitudes.

    The magnitudes may be shared by fewer weights than a block has; SherryError if not even by 8.
    """
    k = weights.shape[1]
    span = math.gcd(k, BLOCK)
    while True:
        codes, scales, wrong = read_grid(weights, span)
        if not wrong.any():
            return Quantized(codes, scales, 0)
        if span <= 2 * GROUP:
            raise SherryError(
                f"{np.count_nonzero(wrong)} weights of a baked layer are off Sherry's grid, the first in "
                f"{place(int(np.argmax(wrong)) // GROUP, k)}; the layer was changed after it was baked"
            )
        span //= 2
