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
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.groups import GROUP, PATTERNS, Grid, from_fours, place, to_fours
from sherry_gguf.threads import in_parts, rows_of
from sherry_gguf.weights.floats import floats
from sherry_gguf.weights.granularity import Granularity

if TYPE_CHECKING:
    import torch

Ties = Literal["torch", "first"]
"""Which of several equally small weights of a group is zeroed: the one ``torch.topk`` drops on a CPU, as the
trained model did, or the first one, which is the rule of the C reference and needs no PyTorch."""

KEPT: Final = GROUP - 1
PIECE: Final = 128  # weights of the longest piece, those of a SHERRY block
_WHOLE = 8 * GROUP  # eight groups, whose bytes make a word

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
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

    def weights(self, scales: F32 | None = None, out: F32 | None = None) -> F32:
        """float32[rows, k] in a row's order; with other scales if some are given; written to ``out`` if it is given."""
        return expand(self.codes, self.scales if scales is None else scales, self.grid, out)


def expand(codes: U8, scales: F32, grid: Grid = "consecutive", out: F32 | None = None) -> F32:
    """codes uint8[rows, k/4], scales float32[rows, k/piece], any piece -> weights float32[rows, k].

    Without a grid they are in fours, which are a row's order for groups of neighbours.
    """
    rows, n_scales = scales.shape
    weights = np.empty((rows, codes.shape[1] * GROUP), dtype=np.float32) if out is None else out

    def part(start: int, stop: int) -> None:
        fours = _FOURS.take(codes[start:stop]).view(np.float32).reshape(stop - start, n_scales, -1)
        fours *= scales[start:stop, :, None]
        weights[start:stop] = from_fours(fours.reshape(stop - start, -1), grid)

    in_parts(part, rows, rows_of(weights.shape[1]))
    return weights


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
_TIED = np.uint8(0x80)  # a bit that no code has


def _pair_table() -> npt.NDArray[np.uint16]:
    """uint16[65536]: (bit p: weight p is a smallest one) << 8 | (bit p: weight p is negative) of eight -> two codes.

    The code of the first four is the low byte. The first of several smallest is zeroed; such codes are _TIED.
    """
    codes = np.zeros((16, 16), dtype=np.uint16)  # [smallest, negative] of four
    for smallest in range(1, 16):
        positions = [p for p in range(GROUP) if smallest >> p & 1]
        codes[smallest] = _CODES[positions[0] << 4 | np.arange(16)] | (_TIED if len(positions) > 1 else 0)
    high, low = np.divmod(np.arange(1 << 16), 256)
    pairs: npt.NDArray[np.uint16] = codes[high & 15, low & 15] | codes[high >> 4, low >> 4] << 8
    return pairs.astype("<u2")


_PAIRS = _pair_table()
_FOURS = (
    PATTERNS.astype(np.float32).view(np.complex128).reshape(-1)
)  # the weights of a code: one gather instead of four


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


@dataclass(frozen=True)
class _Part:
    """What was found in some rows.

    bare   groups of two or more zeros, int64[n]
    tied   other groups of several smallest weights, int64[m]; fours: these, float32[m, 4]
    """

    bare: I64
    tied: I64
    fours: F32


def _quantize_part(w: F32, codes: U8, sums: F64) -> _Part:
    """float32[n] in fours -> codes uint8[n/4] and kept sums float64[n/piece], which are written; of ties the first."""
    whole = w if w.size % _WHOLE == 0 else np.append(w, np.ones(-w.size % _WHOLE, dtype=np.float32))
    lanes = np.empty((GROUP, whole.size // GROUP), dtype=np.float32)
    a = np.abs(whole.reshape(-1, GROUP).T, out=lanes)  # each lane contiguous, so NumPy runs SIMD
    smallest = np.minimum(np.minimum(a[0], a[1]), np.minimum(a[2], a[3]))
    e = (a == smallest).view(np.uint64)  # eight groups at a time, a byte each
    pairs = (e[0] | e[1] << 1 | e[2] << 2 | e[3] << 3).view("<u2")
    found = _PAIRS.take((pairs | pairs >> 4) << 8 | np.packbits(whole < 0, bitorder="little")).view(np.uint8)
    codes[:] = found[: codes.size]

    # float64 sums of float32 magnitudes are exact unless these span more than 2**22: the order does not matter
    pieces = (sums.size, -1)
    sums[:] = np.einsum("ij->i", np.abs(w).reshape(pieces), dtype=np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is refused by name later
        sums -= np.einsum("ij->i", smallest[: codes.size].reshape(pieces), dtype=np.float64)

    tied = np.flatnonzero(codes >= _TIED)
    codes[tied] ^= _TIED
    is_bare = smallest[tied] == 0
    rest = tied[~is_bare]
    return _Part(tied[is_bare], rest, w.reshape(-1, GROUP)[rest])


def quantize(
    weights: F32 | torch.Tensor,
    granularity: Granularity | None = None,
    *,
    grid: Grid = "consecutive",
    ties: Ties = "torch",
    allow_bare_groups: bool = False,
) -> Quantized:
    """float32[rows, k], or a tensor of any float type -> codes uint8[rows, k/4] and scales float32[rows, k/piece].

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

    codes = np.empty((rows, k // GROUP), dtype=np.uint8)
    sums = np.empty((rows, k // piece), dtype=np.float64)
    if not rows:
        return Quantized(codes, sums.astype(np.float32), 0, grid)

    def part(start: int, stop: int) -> _Part:
        w = np.ascontiguousarray(to_fours(floats(weights[start:stop]), grid)).reshape(-1)
        found = _quantize_part(w, codes[start:stop].reshape(-1), sums[start:stop].reshape(-1))
        first = start * (k // GROUP)
        return _Part(found.bare + first, found.tied + first, found.fours)

    parts = in_parts(part, rows, rows_of(k))
    _require_finite(weights, sums, grid)
    zero_pieces = sums == 0
    if not allow_bare_groups:
        _require_codes(np.concatenate([part.bare for part in parts]), zero_pieces, piece, k, grid)
    tied, fours = np.concatenate([part.tied for part in parts]), np.concatenate([part.fours for part in parts])
    if tied.size:
        negative = np.packbits(fours < 0, axis=-1, bitorder="little")[:, 0]
        codes.reshape(-1)[tied] = _CODES[_TIE_RULES[ties](np.abs(fours)) << 4 | negative]

    alpha = sums.reshape(-1, run_length // piece).sum(axis=1) / (run_length // GROUP * KEPT)
    scales = np.repeat(alpha, run_length // piece).astype(np.float32).reshape(sums.shape)
    scales[zero_pieces] = 0
    codes.reshape(rows, k // piece, -1)[zero_pieces] = 0
    return Quantized(codes, scales, tied.size, grid)


def _require_finite(weights: F32 | torch.Tensor, sums: F64, grid: Grid) -> None:
    if np.isfinite(sums).all():
        return
    bad = np.flatnonzero(~np.isfinite(to_fours(floats(weights), grid)))
    raise SherryError(
        f"{bad.size} weights are not finite, the first in {place(int(bad[0]) // GROUP, weights.shape[1], grid)}; "
        f"the checkpoint is damaged, save it again"
    )


def _require_codes(bare: I64, zero_pieces: npt.NDArray[np.bool_], piece: int, row_length: int, grid: Grid) -> None:
    """bare: groups of several zeros int64[n], ascending; those in pieces of zeros only are fine."""
    no_code = bare[~zero_pieces.reshape(-1)[bare // (piece // GROUP)]]
    if no_code.size:
        raise SherryError(
            f"{no_code.size} groups of 4 have two or more zeros, the first in "
            f"{place(int(no_code[0]), row_length, grid)}: Sherry's groups have exactly one",
            Way.LEAVE_OUT,
        )
