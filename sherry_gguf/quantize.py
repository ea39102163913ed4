"""Latent weights -> codes and scales, exactly as the trained model's forward computes them.

Sherry (arXiv 2601.07892, section 3) in each group of 4 weights of a row zeroes the one of smallest magnitude, and
gives the other three the magnitude

    alpha = sum(|kept w|) / (3/4 * run length)

shared by a run of weights: 128 of a row (``per_group``, the trainer's default), a whole row (``per_channel``) or
the whole matrix (``per_tensor``). A group is four neighbours; those of STQ1_0 lie 16 apart (``groups.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK, GROUP
from sherry_gguf.groups import RUN, Groups, place, to_fours

Ties = Literal["torch", "first"]
"""Which of several equally small weights of a group is zeroed: the one ``torch.topk`` drops on a CPU, as the
trained model did, or the first one, which is the rule of the C reference and needs no PyTorch."""

KEPT = GROUP - 1
_CHUNK = 1 << 15  # weights handled at a time, so that the temporaries stay in the L2 cache; a multiple of 128

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Granularity:
    """Which weights share a scale. ``group_size`` (weights of a row) belongs to ``per_group`` alone."""

    kind: Literal["per_group", "per_channel", "per_tensor"] = "per_group"
    group_size: int = BLOCK

    def __str__(self) -> str:
        return f"per_group {self.group_size}" if self.kind == "per_group" else self.kind

    def run_length(self, rows: int, row_length: int, groups: Groups = "consecutive") -> int:
        """How many consecutive weights of a [rows, row_length] matrix share a scale.

        Raises SherryError where groups of 4 or runs would cross the end of a row, or groups that of a run.
        """
        if row_length % RUN[groups]:
            raise SherryError(
                f"rows of {row_length} weights are no multiple of {RUN[groups]}, as {groups} groups of {GROUP} need: "
                f"not a Sherry layer"
            )
        if self.kind == "per_tensor":
            return rows * row_length
        if self.kind == "per_channel":
            return row_length
        if self.group_size % RUN[groups] or row_length % self.group_size:
            raise SherryError(
                f"group_size {self.group_size} does not divide rows of {row_length} weights into {groups} groups of "
                f"{GROUP}; "
                f"give the one it was trained with (--group-size), or exclude this layer (--sherry-layers REGEX)"
            )
        return self.group_size


@dataclass(frozen=True)
class Quantized:
    """A matrix on Sherry's grid.

    codes   uint8[rows, k / 4], 0..31 (``format.PATTERNS``), in the order of ``groups``
    scales  float32[rows, k / span], alpha, not yet rounded to fp16; 0 for a span of zeros only
    ties    how many groups had several smallest weights
    groups  which four weights each code is of

    ``span`` is the largest run of weights that lies in one block and has one scale: 128, or less where the
    granularity is finer or a row is no multiple of 128 (then only other types can hold the matrix).
    """

    codes: U8
    scales: F32
    ties: int
    groups: Groups = "consecutive"


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


def _quantize_chunk(w: F32, span: int, break_ties: _TieRule) -> tuple[U8, F64, npt.NDArray[np.bool_], int]:
    """float32[n], n % span == 0 -> codes uint8[n/4], kept sums float64[n/span], two_zeros bool[n/4], ties."""
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
    kept = a.sum(axis=0, dtype=np.float64) - smallest
    sums = kept.reshape(-1, span // GROUP).sum(axis=1)
    return _CODES[zero_pos << 4 | negative], sums, two_zeros, real_ties.size


def quantize(
    weights: F32,
    granularity: Granularity | None = None,
    *,
    groups: Groups = "consecutive",
    ties: Ties = "torch",
    allow_bare_groups: bool = False,
) -> Quantized:
    """float32[rows, k] -> codes uint8[rows, k/4] and scales float32[rows, k/span].

    ``weights`` is one Linear in the trainer's orientation: k, the last axis, is the input dimension. alpha is
    computed in float64 and rounded once to float32; rounding to fp16 is left to ``blocks.pack``.

    Raises SherryError, naming row and group, for a weight that is not finite, for a bare group, one of two or more
    zeros (it has no code; a span of zeros only is fine), and where groups or runs would cross the end of a row.
    With ``allow_bare_groups`` the further zeros become +alpha instead, as in the C reference.
    """
    granularity = granularity or Granularity()
    if weights.ndim != 2:
        raise SherryError(f"a matrix is needed, this has shape {list(weights.shape)}; exclude it (--sherry-layers)")
    rows, k = weights.shape
    run = granularity.run_length(rows, k, groups)
    span = math.gcd(run, k, BLOCK)

    flat = np.ascontiguousarray(to_fours(weights, groups), dtype=np.float32).reshape(-1)
    codes = np.empty(flat.size // GROUP, dtype=np.uint8)
    two_zeros = np.empty(flat.size // GROUP, dtype=np.bool_)
    sums = np.empty(flat.size // span, dtype=np.float64)
    n_ties = 0
    for start in range(0, flat.size, _CHUNK):
        stop = min(start + _CHUNK, flat.size)
        part = slice(start // GROUP, stop // GROUP)
        codes[part], sums[start // span : stop // span], two_zeros[part], chunk_ties = _quantize_chunk(
            flat[start:stop], span, _TIE_RULES[ties]
        )
        n_ties += chunk_ties

    _require_finite(flat, sums, k, groups)
    zero_spans = sums == 0
    if not allow_bare_groups:
        _require_codes(two_zeros & ~np.repeat(zero_spans, span // GROUP), k, groups)

    alpha = sums.reshape(-1, run // span).sum(axis=1) / (run // GROUP * KEPT)
    scales = np.repeat(alpha, run // span).astype(np.float32)
    scales[zero_spans] = 0
    codes.reshape(-1, span // GROUP)[zero_spans] = 0
    return Quantized(codes.reshape(rows, k // GROUP), scales.reshape(rows, k // span), n_ties, groups)


def _require_finite(flat: F32, sums: F64, row_length: int, groups: Groups) -> None:
    if np.isfinite(sums).all():
        return
    bad = np.flatnonzero(~np.isfinite(flat))
    raise SherryError(
        f"{bad.size} weights are not finite, the first in {place(int(bad[0]) // GROUP, row_length, groups)}; "
        f"the checkpoint is damaged, save it again"
    )


def _require_codes(no_code: npt.NDArray[np.bool_], row_length: int, groups: Groups) -> None:
    if not no_code.any():
        return
    raise SherryError(
        f"{np.count_nonzero(no_code)} groups of 4 have two or more zeros, the first in "
        f"{place(int(np.argmax(no_code)), row_length, groups)}: Sherry's grid has exactly one; "
        f"if this is no Sherry layer, exclude it (--sherry-layers REGEX)"
    )
