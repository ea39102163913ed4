"""Latent weights -> codes and scales, exactly as the trained model's forward computes them.

Sherry (arXiv 2601.07892, section 3) in each group of 4 weights of a row zeroes the one of smallest magnitude, and
gives the other three the magnitude

    alpha = sum(|kept w|) / (3/4 * length of the scale run)

shared by a scale run: 128 weights of a row (``per_group``, the trainer's default), a whole row (``per_channel``) or
the whole matrix (``per_tensor``). A group is four neighbours; those of STQ1_0 lie 16 apart (``formats/groups.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.groups import GROUP, Grid, from_fours, place, ternary, to_fours
from sherry_gguf.weights.granularity import Granularity

Ties = Literal["torch", "first"]
"""Which of several equally small weights of a group is zeroed: the one ``torch.topk`` drops on a CPU, as the
trained model did, or the first one, which is the rule of the C reference and needs no PyTorch."""

KEPT: Final = GROUP - 1
PIECE: Final = 128  # weights of the longest piece, those of a SHERRY block
_CHUNK = 1 << 15  # weights handled at a time, so that the temporaries stay in the L2 cache; a multiple of 128

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Quantized:
    """A matrix of ternary weights, one zero in every group.

    codes   uint8[rows, k / 4], 0..31 (``formats.groups.PATTERNS``), in the order of the grid's groups
    scales  float32[rows, k / piece], alpha, not yet rounded to fp16; 0 for a piece of zeros only
    ties    how many groups had several smallest weights
    grid    which four weights each code is of

    A piece is the part of a scale run that lies in one block of 128 neighbours, or is shorter where the granularity is
    finer or a row is no multiple of 128 (then other types than SHERRY can hold the matrix).
    """

    codes: U8
    scales: F32
    ties: int
    grid: Grid = "consecutive"

    @property
    def piece(self) -> int:
        """Weights of a piece."""
        return int(self.codes.shape[1] * GROUP // self.scales.shape[1])

    def weights(self, scales: F32 | None = None) -> F32:
        """float32[rows, k] in a row's order; with other scales if some are given."""
        return from_fours(expand(self.codes, self.scales if scales is None else scales), self.grid)


def expand(codes: U8, scales: F32) -> F32:
    """codes uint8[rows, k/4], scales float32[rows, k/piece], any piece -> weights float32[rows, k], in fours."""
    rows, n_scales = scales.shape
    weights = np.multiply(ternary(codes).reshape(rows, n_scales, -1), scales[:, :, None], dtype=np.float32)
    return weights.reshape(rows, -1)


def _code_table() -> U8:
    """uint8[64]: zero_pos << 4 | (bit p: weight p is negative) -> code. The bit of the zero itself is ignored."""
    table = np.zeros(64, dtype=np.uint8)
    for zero_pos in range(GROUP):
        first, second, third = (p for p in range(GROUP) if p != zero_pos)
        for negative in range(16):
            sign = negative >> first & 1
            second_differs = (negative >> second & 1) ^ sign
            third_differs = (negative >> third & 1) ^ sign
            table[zero_pos << 4 | negative] = sign << 4 | zero_pos << 2 | third_differs << 1 | second_differs
    return table


_CODES = _code_table()


def _torch_zero_positions(magnitudes: F32) -> U8:
    """float32[n, 4] -> uint8[n]: the position ``torch.topk(magnitudes, 3)`` does not keep."""
    import torch

    kept = torch.topk(torch.from_numpy(magnitudes), KEPT, dim=-1).indices
    dropped: U8 = (sum(range(GROUP)) - kept.sum(dim=-1)).to(torch.uint8).numpy()
    return dropped


def _first_zero_positions(magnitudes: F32) -> U8:
    """float32[n, 4] -> uint8[n]: the first position of the smallest magnitude."""
    first: U8 = magnitudes.argmin(axis=1).astype(np.uint8)
    return first


_TieRule = Callable[[F32], U8]
_TIE_RULES: dict[Ties, _TieRule] = {"torch": _torch_zero_positions, "first": _first_zero_positions}


def _quantize_chunk(w: F32, piece: int, break_ties: _TieRule) -> tuple[U8, F64, npt.NDArray[np.bool_], int]:
    """float32[n], n % piece == 0 -> codes uint8[n/4], kept sums float64[n/piece], two_zeros bool[n/4], ties."""
    lanes = np.ascontiguousarray(w.reshape(-1, GROUP).T)  # [4, n/4]: each lane contiguous, so NumPy runs SIMD
    a = np.abs(lanes)
    smallest = np.minimum(np.minimum(a[0], a[1]), np.minimum(a[2], a[3]))
    is_smallest = (a == smallest).view(np.uint8)
    not_first = is_smallest ^ 1
    zero_pos = not_first[0] + (not_first[0] & not_first[1]) + (not_first[0] & not_first[1] & not_first[2])

    n = (lanes < 0).view(np.uint8)
    negative = n[0] | n[1] << 1 | n[2] << 2 | n[3] << 3

    tied = np.flatnonzero(is_smallest[0] + is_smallest[1] + is_smallest[2] + is_smallest[3] > 1)
    two_zeros = np.zeros(zero_pos.shape, dtype=np.bool_)
    two_zeros[tied] = smallest[tied] == 0
    real_ties = tied[~two_zeros[tied]]
    if real_ties.size:
        zero_pos[real_ties] = break_ties(np.ascontiguousarray(a[:, real_ties].T))

    # float64 sums of float32 magnitudes are exact unless these span more than 2**22: the order does not matter
    ones = np.ones(piece // GROUP)
    sums = (a.astype(np.float64).reshape(GROUP, -1, ones.size) @ ones).sum(axis=0)
    sums -= smallest.astype(np.float64).reshape(-1, ones.size) @ ones
    return _CODES[zero_pos << 4 | negative], sums, two_zeros, real_ties.size


def quantize(
    weights: F32,
    granularity: Granularity | None = None,
    *,
    grid: Grid = "consecutive",
    ties: Ties = "torch",
    allow_bare_groups: bool = False,
) -> Quantized:
    """float32[rows, k] -> codes uint8[rows, k/4] and scales float32[rows, k/piece].

    ``weights`` is one Linear in the trainer's orientation: k, the last axis, is the input dimension. alpha is
    computed in float64 and rounded once to float32; rounding to fp16 is left to the blocks.

    Raises SherryError, naming row and group, for a weight that is not finite, for a bare group, one of two or more
    zeros (it has no code; a piece of zeros only is fine), and where groups or scale runs would cross the end of a row.
    With ``allow_bare_groups`` the further zeros become +alpha instead, as in the C reference.
    """
    granularity = granularity or Granularity()
    if weights.ndim != 2:
        raise SherryError(f"a matrix is needed, this has shape {list(weights.shape)}", Way.LEAVE_OUT)
    rows, k = weights.shape
    run_length = granularity.run_length(rows, k, grid)
    piece = math.gcd(run_length, k, PIECE)

    flat = np.ascontiguousarray(to_fours(weights, grid), dtype=np.float32).reshape(-1)
    codes = np.empty(flat.size // GROUP, dtype=np.uint8)
    two_zeros = np.empty(flat.size // GROUP, dtype=np.bool_)
    sums = np.empty(flat.size // piece, dtype=np.float64)
    n_ties = 0
    for start in range(0, flat.size, _CHUNK):
        stop = min(start + _CHUNK, flat.size)
        part = slice(start // GROUP, stop // GROUP)
        codes[part], sums[start // piece : stop // piece], two_zeros[part], chunk_ties = _quantize_chunk(
            flat[start:stop], piece, _TIE_RULES[ties]
        )
        n_ties += chunk_ties

    _require_finite(flat, sums, k, grid)
    zero_pieces = sums == 0
    if not allow_bare_groups:
        _require_codes(two_zeros & ~np.repeat(zero_pieces, piece // GROUP), k, grid)

    alpha = sums.reshape(-1, run_length // piece).sum(axis=1) / (run_length // GROUP * KEPT)
    scales = np.repeat(alpha, run_length // piece).astype(np.float32)
    scales[zero_pieces] = 0
    codes.reshape(-1, piece // GROUP)[zero_pieces] = 0
    return Quantized(codes.reshape(rows, k // GROUP), scales.reshape(rows, k // piece), n_ties, grid)


def _require_finite(flat: F32, sums: F64, row_length: int, grid: Grid) -> None:
    if np.isfinite(sums).all():
        return
    bad = np.flatnonzero(~np.isfinite(flat))
    raise SherryError(
        f"{bad.size} weights are not finite, the first in {place(int(bad[0]) // GROUP, row_length, grid)}; "
        f"the checkpoint is damaged, save it again"
    )


def _require_codes(no_code: npt.NDArray[np.bool_], row_length: int, grid: Grid) -> None:
    if not no_code.any():
        return
    raise SherryError(
        f"{np.count_nonzero(no_code)} groups of 4 have two or more zeros, the first in "
        f"{place(int(np.argmax(no_code)), row_length, grid)}: Sherry's groups have exactly one",
        Way.LEAVE_OUT,
    )
