"""Latent weights -> the values a layer multiplies with, one function per method. PyTorch, differentiable nowhere.

Each takes scale runs float[n, length], the weights of a row sharing a scale, and gives the same shape. These are the
forwards of the published trainers: Sherry of arXiv 2601.07892, section 3; the dead zone of Tequila, arXiv 2509.23809;
absmean of BitNet b1.58, arXiv 2402.17764; TWN of arXiv 1605.04711; binary weights of XNOR-Net, arXiv 1603.05279.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sherry_gguf.formats.groups import GROUP
from sherry_gguf.weights.quantize import KEPT


def keep_three(magnitudes: Tensor) -> Tensor:
    """[..., n], none negative -> bool[..., n]: all of each group of 4 but its smallest, ``torch.topk(groups, 3)``.

    It is many times as fast: the position of a minimum is all that it needs, which three comparisons of lanes give.
    Only groups of several smallest go through topk, on the CPU, as the converter has it. Latents in float32 have none,
    but one in 400 groups has them once a model is saved in bfloat16.
    """
    a, b, c, d = magnitudes.unflatten(-1, (-1, GROUP)).unbind(-1)
    one, other = torch.minimum(a, b), torch.minimum(c, d)
    left = one <= other  # the smallest is a or b
    a_first, c_first = a <= b, c <= d
    kept = torch.stack([~(left & a_first), ~left | a_first, left | ~c_first, left | c_first], dim=-1)
    tied = (one == other) | torch.where(left, a == b, c == d)
    if tied.any():
        fours = magnitudes.unflatten(-1, (-1, GROUP))[tied].float().cpu()
        largest = torch.topk(fours, KEPT, dim=-1).indices
        kept[tied] = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, largest, True).to(kept.device)
    return kept.flatten(-2)


def sherry(runs: Tensor) -> Tensor:
    """One zero in each group of 4, and the mean magnitude of the kept three quarters for the others."""
    magnitudes = runs.abs()
    kept = keep_three(magnitudes)
    alpha = (magnitudes * kept).sum(-1, keepdim=True) * (GROUP / (KEPT * runs.shape[-1]))
    return runs.sign() * kept * alpha


def absmean(runs: Tensor) -> Tensor:
    """Dense ternary: zero below half the mean magnitude, the mean magnitude above."""
    alpha = runs.abs().mean(-1, keepdim=True)
    return runs.sign() * (runs.abs() >= alpha / 2) * alpha


def twn(runs: Tensor) -> Tensor:
    """Dense ternary: zero below 0.75 of the mean magnitude, the mean of what is kept above."""
    magnitudes = runs.abs()
    kept = magnitudes >= 0.75 * magnitudes.mean(-1, keepdim=True)
    alpha = (magnitudes * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return runs.sign() * kept * alpha


def binary(runs: Tensor) -> Tensor:
    """No zeros: the sign, with the mean magnitude. A latent of exactly zero stays zero."""
    return runs.sign() * runs.abs().mean(-1, keepdim=True)


Quantizer = Callable[[Tensor], Tensor]
QUANTIZERS: dict[str, Quantizer] = {
    "sherry": sherry,
    "absmean": absmean,
    "twn": twn,
    "tequila": absmean,  # and a bias: layers.TequilaLinear
    "binary": binary,
}
