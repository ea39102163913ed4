"""The gradient of a quantizer, which has none: straight through, as if it were the identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """quantized + residual * latents; backwards as if quantized were the latents themselves."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor, residual: float) -> Tensor:
        ctx.residual = residual
        return torch.add(quantized, latents, alpha=residual) if residual else quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient * (1 + ctx.residual) if ctx.residual else gradient), None, None
