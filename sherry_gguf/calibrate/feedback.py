"""GPTQ's column loop (arXiv 2210.17323) over groups of four: what a group loses, the columns after it make good.

With U the upper Cholesky factor of H^-1 (``hessian.py``), four columns F, and M the inverse of U_FF: the error
e = w_F - q_F costs |e M|^2, and w_rest -= (e M) U_F,rest is the best that the later columns can do about it. The codes
of a group are those of least cost of all that there are: 32 for one plane, 32 x 32 sums for two. With S = M M^T

    |(w - a P_i - b P_j) M|^2 = w S w - 2a w S P_i - 2b w S P_j + a^2 P_i S P_i + b^2 P_j S P_j + 2ab P_i S P_j

which is a product of eleven numbers of a row with a table of the group, for all rows and sums at once.

The scales of a block are settled when its first group is reached, on the weights as corrected so far.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch

from sherry_gguf.calibrate.scales import fit_scales
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS

BLOCK: Final = 128  # weights that share scales
_ROWS: Final = 512  # quantized at a time on a CPU: what is made of them stays in the cache


@dataclass(frozen=True)
class Planes:
    """A quantized matrix.

    codes   uint8[planes, rows, k/4], as ``formats/groups.py`` has them
    scales  float16[planes, rows, k/128], the first plane's the larger
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def weights(self) -> torch.Tensor:
        """float32[rows, k]: the sum of the planes, as a reader of the file computes it."""
        planes, rows, groups = self.codes.shape
        blocks = self.ternary().view(planes, rows, -1, BLOCK) * self.scales.to(torch.float32)[..., None]
        return blocks.sum(dim=0).view(rows, groups * GROUP)

    def ternary(self) -> torch.Tensor:
        """float32[planes, rows, k]: -1, 0 and 1."""
        patterns = torch.from_numpy(PATTERNS.copy()).to(self.codes.device, torch.float32)
        return patterns[self.codes.int()].flatten(-2)

    def rows(self, part: slice) -> Planes:
        """Some of the rows."""
        return Planes(self.codes[:, part], self.scales[:, part])

    def require_fit(self) -> None:
        """Raise SherryError if a scale is too large for fp16, or no number."""
        if not torch.isfinite(self.scales).all():
            raise SherryError("its scales do not fit fp16, which ends at 65504", Way.LEAVE_OUT)


def quantize(weights: torch.Tensor, upper: torch.Tensor, planes: int) -> Planes:
    """float32[rows, k] -> one or two planes. upper: float64[k, k], as ``hessian.upper_factor`` gives it.

    k is a multiple of 128. Rows are independent; on a CPU some of them are done at a time, in as many threads as
    PyTorch has, so that the number of threads changes no bit.
    """
    codes = torch.empty(planes, len(weights), weights.shape[1] // GROUP, dtype=torch.uint8, device=weights.device)
    scales = torch.empty(planes, len(weights), weights.shape[1] // BLOCK, dtype=torch.float16, device=weights.device)
    tables = _tables(upper, planes)

    @torch.inference_mode()  # which is a thread's own
    def part(start: int, stop: int) -> None:
        codes[:, start:stop], scales[:, start:stop] = _quantize_rows(weights[start:stop], tables, planes)

    _in_parts(part, len(weights), len(weights) if weights.is_cuda else _ROWS)
    return Planes(codes, scales)


def _in_parts(part: Callable[[int, int], None], rows: int, step: int) -> None:
    starts = range(0, rows, step)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, min(threads, os.cpu_count() or 1))) as pool:
            list(pool.map(lambda start: part(start, min(start + step, rows)), starts))
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Tables:
    """What choosing codes needs of a factor.

    The factor itself float32[k, k], the importance [k] of each column, and for each group M, S and the table of its
    costs.
    """

    upper: torch.Tensor
    importance: torch.Tensor
    inverse: torch.Tensor
    metric: torch.Tensor
    sums: list[torch.Tensor]


def _tables(upper: torch.Tensor, planes: int) -> _Tables:
    groups = upper.shape[0] // GROUP
    own = upper.view(groups, GROUP, groups, GROUP).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # U_FF of each group
    inverse = torch.linalg.inv(own)
    metric = inverse @ inverse.mT
    importance = upper.diagonal().square().reciprocal()
    sums = [_sums(metric[group], planes).to(torch.float32) for group in range(groups)]
    importance = (importance / importance.mean()).to(torch.float32)
    return _Tables(upper.to(torch.float32), importance, inverse.to(torch.float32), metric.to(torch.float32), sums)


def _sums(metric: torch.Tensor, planes: int) -> torch.Tensor:
    """The table of a group: [5, 32] for one plane, [11, 1024] for two, in the order of ``_choose``'s numbers."""
    patterns = torch.from_numpy(PATTERNS.copy()).to(metric)
    products = patterns @ metric @ patterns.T  # P_i S P_j
    if planes == 1:
        return torch.cat([patterns.T, products.diagonal()[None]])
    first = patterns.repeat_interleave(CODES, dim=0)
    second = patterns.repeat(CODES, 1)
    squares = products.diagonal()
    return torch.cat(
        [first.T, second.T, squares.repeat_interleave(CODES)[None], squares.repeat(CODES)[None], products.view(1, -1)]
    )


def _choose(weights: torch.Tensor, scales: torch.Tensor, metric: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """weights float32[rows, 4], scales float32[planes, rows] -> int64[planes, rows]: the codes of least cost."""
    projected = weights @ metric
    numbers = [-2 * a[:, None] * projected for a in scales] + [a.square()[:, None] for a in scales]
    if len(scales) == 2:
        numbers.append(2 * (scales[0] * scales[1])[:, None])
    costs = torch.cat(numbers, dim=1) @ sums
    # NumPy's argmin of a row is vectorized, and PyTorch's on a CPU is not
    best = costs.argmin(dim=1) if costs.is_cuda else torch.from_numpy(costs.numpy().argmin(axis=1))
    return best[None] if len(scales) == 1 else torch.stack([best // CODES, best % CODES])


def _quantize_rows(weights: torch.Tensor, tables: _Tables, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """codes [planes, rows, k/4] and scales [planes, rows, k/128] of some rows."""
    k = weights.shape[1]
    patterns = torch.from_numpy(PATTERNS.copy()).to(weights)
    weights = weights.clone()
    all_codes, all_scales = [], []
    for start in range(0, k, BLOCK):
        block = slice(start, start + BLOCK)
        corrected = weights[:, block]
        scales = fit_scales(corrected, tables.importance[block], planes)
        all_scales.append(scales.to(torch.float16))
        errors = torch.empty_like(corrected)
        for column in range(0, BLOCK, GROUP):
            four, after = slice(column, column + GROUP), slice(column + GROUP, BLOCK)
            group = (start + column) // GROUP
            codes = _choose(corrected[:, four], scales, tables.metric[group], tables.sums[group])
            all_codes.append(codes.to(torch.uint8))
            quantized = (patterns[codes] * scales[..., None]).sum(dim=0)
            errors[:, four] = (corrected[:, four] - quantized) @ tables.inverse[group]
            this_row = slice(start + column, start + column + GROUP)
            corrected[:, after] -= errors[:, four] @ tables.upper[this_row, start + column + GROUP : start + BLOCK]
        # what is owed to the blocks after this one is paid at once
        weights[:, start + BLOCK :] -= errors @ tables.upper[block, start + BLOCK :]
    return torch.stack(all_codes, dim=-1), torch.stack(all_scales, dim=-1)
