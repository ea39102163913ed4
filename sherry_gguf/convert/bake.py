"""One source layer onto its grid, in the trainer's orientation and before any of upstream's rewriting.

Upstream permutes, stacks, splits and fuses rows. Scales per channel, tensor or 256 weights are those of the layer as
it was trained, so they are settled here; rows that already lie on the grid stay on it, whatever is done to their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sherry_gguf.blocks import expand, read_grid, round_scales
from sherry_gguf.convert.plan import Layer
from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK, GROUP
from sherry_gguf.groups import RUN, Groups, from_fours, place, to_fours
from sherry_gguf.quantize import Granularity, Quantized, quantize

F32 = npt.NDArray[np.float32]


def quantize_layer(weights: F32, layer: Layer, granularity: Granularity) -> Quantized:
    """float32[rows, k] -> codes and unrounded scales, as the plan says this layer is read."""
    if layer.source == "baked":
        return _read_grid(weights, layer.groups)
    return quantize(weights, granularity, groups=layer.groups[0], allow_bare_groups=layer.source == "lossy")


def bake(weights: torch.Tensor, layer: Layer, granularity: Granularity, *, fp16_scales: bool = True) -> torch.Tensor:
    """[rows, k] or [experts, rows, k], any float dtype -> float32 of the same shape, on the grid.

    With fp16_scales the values are those that blocks give back, in whatever type the tensor is then stored.
    """
    matrices = weights.reshape(-1, *weights.shape[-2:])
    baked = np.empty(matrices.shape, dtype=np.float32)
    for i, matrix in enumerate(matrices):
        grid = quantize_layer(matrix.to(torch.float32).numpy(), layer, granularity)
        scales = grid.scales
        if fp16_scales:
            scales = round_scales(scales, matrix.shape[1] // scales.shape[1], grid.groups).astype(np.float32)
        baked[i] = from_fours(expand(grid.codes, scales), grid.groups)
    return torch.from_numpy(baked.reshape(weights.shape))


def relative_error(weights: torch.Tensor, baked: torch.Tensor) -> float:
    """What forcing a plain layer onto the grid cost: |baked - weights| / |weights|, Frobenius norms."""
    difference = torch.linalg.vector_norm(baked - weights, dtype=torch.float64)
    return float(difference / torch.linalg.vector_norm(weights, dtype=torch.float64).clamp_min(1e-300))


def _read_grid(weights: F32, kinds: Sequence[Groups]) -> Quantized:
    """Weights that are on a grid of one of the kinds, float32[rows, k] -> their codes and magnitudes.

    The magnitudes may be shared by fewer weights than a block has; SherryError if not even by 8.
    """
    k = weights.shape[1]
    for groups in kinds:
        fours = to_fours(weights, groups)
        span = math.gcd(k, BLOCK)
        while True:
            codes, scales, wrong = read_grid(fours, span)
            if not wrong.any():
                return Quantized(codes, scales, 0, groups)
            if span <= max(RUN[groups], 2 * GROUP):
                break
            span //= 2
    raise SherryError(
        f"{np.count_nonzero(wrong)} weights of a baked layer are off Sherry's grid, the first in "
        f"{place(int(np.argmax(wrong)) // GROUP, k, groups)}; the layer was changed after it was baked"
    )
