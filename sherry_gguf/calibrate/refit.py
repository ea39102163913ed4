"""The scales of whole rows, once all codes are chosen: least squares under the full H.

While columns are gone through, a block's scales are settled before its codes and before all later blocks. When all of
the codes are there, the best scales of a row solve its normal equations, B H B^T s = B H w: a row of B is the ternary
values of one plane of one block, and zeros elsewhere.
"""

from __future__ import annotations

from typing import Final

import torch

from sherry_gguf.calibrate.feedback import BLOCK, Planes
from sherry_gguf.calibrate.scales import rounded

_RIDGE: Final = 1e-9  # of the mean diagonal: two planes of a block may be the same
_ROWS: Final = 512  # at a time


def refit(planes: Planes, weights: torch.Tensor, hessian: torch.Tensor) -> Planes:
    """The same codes, but for signs and order of planes, with scales that cost less; rows for which none do stay.

    weights: float32[rows, k]; hessian: [k, k]
    """
    parts = [slice(start, start + _ROWS) for start in range(0, len(weights), _ROWS)]
    found = [_refit_rows(planes.rows(part), weights[part], hessian.to(torch.float32)) for part in parts]
    return Planes(torch.cat([part.codes for part in found], dim=1), torch.cat([part.scales for part in found], dim=1))


def _refit_rows(planes: Planes, weights: torch.Tensor, hessian: torch.Tensor) -> Planes:
    count, rows, blocks = planes.scales.shape
    ternary = planes.ternary()  # [planes, rows, k]
    wanted = weights @ hessian
    right = (ternary * wanted).view(count, rows, blocks, BLOCK).sum(dim=-1)
    left = torch.empty(rows, count, blocks, count, blocks, dtype=torch.float64, device=weights.device)
    for plane in range(count):
        for block in range(blocks):
            own = slice(block * BLOCK, (block + 1) * BLOCK)
            felt = ternary[plane, :, own] @ hessian[own]
            left[:, plane, block] = (ternary * felt).view(count, rows, blocks, BLOCK).sum(dim=-1).transpose(0, 1)
    n = count * blocks
    left, flat = left.view(rows, n, n), right.transpose(0, 1).reshape(rows, n).to(torch.float64)
    left.diagonal(dim1=1, dim2=2).add_(_RIDGE * left.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True))
    lower, failed = torch.linalg.cholesky_ex(left)
    solved = torch.cholesky_solve(flat[..., None], lower)[..., 0].to(torch.float16)
    before = planes.scales.transpose(0, 1).reshape(rows, n)

    def cost(scales: torch.Tensor) -> torch.Tensor:  # but for what does not depend on them
        s = scales.to(torch.float64)
        return ((left @ s[..., None])[..., 0] * s - 2 * flat * s).sum(dim=1)

    better = (failed == 0) & torch.isfinite(solved).all(dim=1) & (cost(solved) < cost(before))
    scales = torch.where(better[:, None], solved, before).view(rows, count, blocks).transpose(0, 1)
    return _in_order(planes.codes, scales)


def _in_order(codes: torch.Tensor, scales: torch.Tensor) -> Planes:
    """The same weights with scales a >= b >= 0."""
    count, rows, blocks = scales.shape
    by_block = codes.view(count, rows, blocks, -1)
    by_block = torch.where(scales[..., None] < 0, by_block ^ 16, by_block)  # the code of the negated group
    scales, order = scales.abs().sort(dim=0, descending=True, stable=True)
    by_block = by_block.gather(0, order[..., None].expand_as(by_block))
    return Planes(by_block.reshape(codes.shape), rounded(scales).to(torch.float16))
