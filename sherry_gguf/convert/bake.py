"""One source layer to the values that its model multiplies with, in the trainer's orientation.

This comes before any of upstream's rewriting, which permutes, stacks, splits and fuses rows. Scales per channel, tensor
or 256 weights are those of the layer as it was trained, so they are settled here; rows that are baked stay so, whatever
is done to their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.plan import Layer
from sherry_gguf.errors import naming
from sherry_gguf.formats import scales as fp16
from sherry_gguf.formats.groups import GROUP
from sherry_gguf.weights.baked import read_baked
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import Quantized, quantize
from sherry_gguf.weights.ternary import Rule

F32 = npt.NDArray[np.float32]


def quantize_layer(weights: torch.Tensor, layer: Layer, granularity: Granularity) -> Quantized:
    """[rows, k], any float dtype -> codes and unrounded scales, as the plan says this layer is read."""
    if layer.source == "baked":
        return read_baked(weights.to(torch.float32).numpy(), layer.grids)
    return quantize(weights, granularity, grid=layer.grids[0], allow_bare_groups=layer.source == "lossy")


def _bake_matrix(
    matrix: torch.Tensor, layer: Layer, granularity: Granularity, fp16_scales: bool, strict: bool, out: F32
) -> None:
    """[rows, k] -> out float32[rows, k], as ``bake`` has it."""
    if layer.rule is not None:
        rule = layer.rule
        values: F32 = (rule.restored(matrix) if layer.source == "rounded" else rule.values(matrix)).numpy()
        if strict and not rule.is_folded:
            fp16.require_fit(np.abs(values).reshape(len(values), -1, GROUP).max(axis=-1), GROUP)
        out[:] = fp16.rounded_weights(values) if fp16_scales and not rule.is_folded else values
        return
    if layer.source == "two-plane":  # whoever stores it in a type checks that the type holds it
        out[:] = matrix.to(torch.float32).numpy()
        return
    quantized = quantize_layer(matrix, layer, granularity)
    if strict:
        fp16.require_fit(quantized.scales, quantized.piece, quantized.grid)
    quantized.weights(fp16.rounded(quantized.scales) if fp16_scales else None, out)


def bake(
    weights: torch.Tensor, layer: Layer, granularity: Granularity, *, fp16_scales: bool = True, strict: bool = True
) -> torch.Tensor:
    """[rows, k] or [experts, rows, k], any float dtype -> float32 of the same shape: 0 or a scale, with a sign.

    With fp16_scales the values are those that blocks give back, in whatever type the tensor is then stored. Raises
    UnfitScales for a scale that fp16 cannot hold; not strict, such a scale stays as it is, which only F32 can store.
    """
    matrices = weights.reshape(-1, *weights.shape[-2:])
    baked = np.empty(matrices.shape, dtype=np.float32)
    for matrix, values in zip(matrices, baked, strict=True):
        _bake_matrix(matrix, layer, granularity, fp16_scales, strict, values)
    return torch.from_numpy(baked.reshape(weights.shape))


def bias_of(checkpoint: Checkpoint, name: str, rule: Rule) -> torch.Tensor:
    """float32[rows]: what a layer of Tequila adds to its outputs, with the bias that is stored beside it, if any."""
    with naming(name):
        bias = rule.dead_bias(checkpoint.load(name), checkpoint.dead_gains(name))
    stored = bias_name(name)
    return bias + checkpoint.load(stored).to(torch.float32) if stored in checkpoint.names else bias


def bias_name(weight: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` -> that of the layer's bias."""
    return f"{weight.removesuffix('.weight')}.bias"


def relative_error(weights: torch.Tensor, baked: torch.Tensor) -> float:
    """What changing a layer's weights cost: |baked - weights| / |weights|, Frobenius norms."""
    difference = torch.linalg.vector_norm(baked - weights, dtype=torch.float64)
    return float(difference / torch.linalg.vector_norm(weights, dtype=torch.float64).clamp_min(1e-300))
