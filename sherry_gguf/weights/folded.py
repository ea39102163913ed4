"""Fairy2i: latents -> the real matrix of a complex layer y = U x + W conj(x), its weights +-1 or +-i times two scales.

A real matrix A of halves A11 A12 / A21 A22 is such a layer, if the first half of its inputs and outputs are real parts
and the second half imaginary ones:

    U = (A11 + A22) / 2 + i (A21 - A12) / 2        W = (A11 - A22) / 2 + i (A12 + A21) / 2

The forward takes for each of the complex weights the nearest of 1, i, -1, -i by its angle, and two scales for a matrix:
the mean magnitude of the real parts of those that became real, and of the imaginary parts of the others. It does so
again with what is left over, once for each further stage, and adds up. The sums, put back into halves, are a real
matrix of the shape of A; here that is what a layer multiplies with. All is computed in the dtype of the latents.

Source: model_module/ of Fairy2i-W2, which calls one stage complex_phase_v1, two complex_phase_v2.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from sherry_gguf.errors import SherryError, Way

_LEAST_SCALE: Final = 1e-6


def fold(weights: torch.Tensor, stages: int) -> torch.Tensor:
    """[rows, k], both even, any float dtype -> float32[rows, k]."""
    rows, k = weights.shape
    if rows % 2 or k % 2:
        raise SherryError(
            f"its shape {[rows, k]} has no halves, and complex layers have real and imaginary ones", Way.LEAVE_OUT
        )
    (a11, a12), (a21, a22) = (half.split(k // 2, dim=1) for half in weights.split(rows // 2))
    u_re, u_im = _quantized(0.5 * (a11 + a22), 0.5 * (a21 - a12), stages)
    w_re, w_im = _quantized(0.5 * (a11 - a22), 0.5 * (a12 + a21), stages)
    top = torch.cat([w_re + u_re, w_im - u_im], dim=1)
    bottom = torch.cat([w_im + u_im, u_re - w_re], dim=1)
    return torch.cat([top, bottom]).to(torch.float32)


def _quantized(re: torch.Tensor, im: torch.Tensor, stages: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary parts, as the sum of so many stages has them."""
    found_re, found_im = torch.zeros_like(re), torch.zeros_like(im)
    for _ in range(stages):
        step_re, step_im = _nearest(re, im)
        found_re, found_im = found_re + step_re, found_im + step_im
        re, im = re - step_re, im - step_im
    return found_re, found_im


def _nearest(re: torch.Tensor, im: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """+-1 or +-i, whichever is nearest by its angle, times the scale of the axis."""
    angle = torch.angle(torch.complex(re.to(torch.float32), im.to(torch.float32)))
    quarter = math.pi / 4
    plus_i, minus_i = (angle >= quarter) & (angle < 3 * quarter), (angle >= -3 * quarter) & (angle < -quarter)
    is_imaginary = plus_i | minus_i
    minus = (angle >= 3 * quarter) | (angle < -3 * quarter)
    real = torch.where(minus, -1, 1) * ~is_imaginary
    imaginary = plus_i.to(re.dtype) - minus_i.to(re.dtype)
    return real * _scale(re[~is_imaginary]), imaginary * _scale(im[is_imaginary])


def _scale(parts: torch.Tensor) -> torch.Tensor:
    """The mean magnitude, in the dtype of the parts, of which there may be none."""
    mean = parts.abs().mean(dtype=torch.float64) if parts.numel() else torch.zeros((), dtype=torch.float64)
    return mean.to(parts.dtype).clamp_min(_LEAST_SCALE)
