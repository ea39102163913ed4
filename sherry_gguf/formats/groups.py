"""Groups of four weights: the code of a group, and which four weights of a row make one.

Every group has exactly one zero and three weights of equal magnitude, 4 * 2**3 = 32 patterns, each of which has a code
of 5 bits (``docs/format.md``):

    code  = sign << 4 | index
    index = zero_pos << 2 | (third differs in sign from first) << 1 | (second differs in sign from first)
    sign  = first is negative

where first, second and third are the non-zero weights of the group in order.

Which four weights share the zero is the grid of a matrix. The published trainer has four neighbours
(``consecutive``); the type STQ1_0 has weights 16 apart (``stride16``): group g of a row takes the weights
(g // 16) * 64 + g % 16 + 16 * p, p = 0..3. Code that knows neighbours only reads both, because ``to_fours`` puts the
weights of a row in the order of its groups. Runs of 64 weights, and so all blocks, stay where they are.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

GROUP: Final = 4  # weights in a group
CODES: Final = 32  # codes 0..31
NO_CODES: Final = 0xFFFF

Grid = Literal["consecutive", "stride16"]
GRIDS: Final[tuple[Grid, ...]] = get_args(Grid)

STRIDE: Final = 16
PERIOD: Final[dict[Grid, int]] = {"consecutive": GROUP, "stride16": STRIDE * GROUP}
"""The least number of neighbours that are whole groups."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


def _patterns() -> I8:
    """int8[32, 4]: the weights (-1, 0, 1) of every code, built from the definition above."""
    table = np.zeros((CODES, GROUP), dtype=np.int8)
    for sign, zero_pos, third, second in product(range(2), range(4), range(2), range(2)):
        code = sign << 4 | zero_pos << 2 | third << 1 | second
        first = -1 if sign else 1
        kept = [p for p in range(GROUP) if p != zero_pos]
        table[code, kept] = (first, -first if second else first, -first if third else first)
    return table


PATTERNS: Final = _patterns()
PATTERNS.setflags(write=False)

# The four weights of a code as the four bytes of one word: one gather instead of four.
_PATTERN_WORDS = PATTERNS.view(np.int32).reshape(-1)

_POWERS_OF_THREE = np.array([1, 3, 9, 27], dtype=np.uint8)
_CODE_OF_TRITS = np.zeros(81, dtype=np.uint8)
_CODE_OF_TRITS[(PATTERNS + 1).astype(np.uint8) @ _POWERS_OF_THREE] = np.arange(len(PATTERNS), dtype=np.uint8)


def ternary(codes: U8) -> I8:
    """codes uint8[rows, k/4] -> int8[rows, k]: -1, 0 or 1, in fours."""
    return _PATTERN_WORDS[codes].view(np.int8)


def codes_of(weights: npt.NDArray[Any]) -> U8:
    """Weights in fours, a number type [rows, k] -> uint8[rows, k/4]: the code of each group's signs.

    The code is 0 where the signs form none.
    """
    rows, k = weights.shape
    trits = signs(weights).view(np.uint8) + np.uint8(1)
    codes: U8 = _CODE_OF_TRITS[trits.reshape(rows, k // GROUP, GROUP) @ _POWERS_OF_THREE]
    return codes


def _pair_codes() -> npt.NDArray[np.uint16]:
    """uint16[65536]: (bit p: weight p is not 0) | (bit p: weight p is negative) << 8 of eight weights -> two codes.

    The code of the first four is the low byte. NO_CODES where either four have other than one zero.
    """
    codes = np.full((16, 16), 0xFF, dtype=np.uint16)  # [negative, nonzero] of four
    bits = np.array([1, 2, 4, 8])
    codes[(PATTERNS < 0) @ bits, (PATTERNS != 0) @ bits] = np.arange(CODES)
    negative, nonzero = np.divmod(np.arange(1 << 16), 256)
    first, second = codes[negative & 15, nonzero & 15], codes[negative >> 4, nonzero >> 4]
    return np.where((first == 0xFF) | (second == 0xFF), NO_CODES, first | second << 8).astype("<u2")


_PAIR_CODES = _pair_codes()


def exact_codes_of(nonzero: U8, negative: U8) -> U8 | None:
    """Bits of weights in fours, the first the lowest, uint8[n/8] -> codes uint8[n/4]; None where a four has none."""
    pairs = _PAIR_CODES.take(nonzero | negative.astype(np.uint16) << 8)
    return None if pairs.max(initial=0) == NO_CODES else pairs.view(np.uint8)


def signs(weights: npt.NDArray[Any]) -> I8:
    """[...] -> int8[...]: -1, 0 or 1."""
    return (weights > 0).view(np.int8) - (weights < 0).view(np.int8)


def to_fours(weights: npt.NDArray[_Scalar], grid: Grid) -> npt.NDArray[_Scalar]:
    """[..., k] in a row's order -> [..., k] in fours. k is a multiple of the grid's PERIOD."""
    return weights if grid == "consecutive" else _swap(weights, GROUP, STRIDE)


def from_fours(weights: npt.NDArray[_Scalar], grid: Grid) -> npt.NDArray[_Scalar]:
    """[..., k] in fours -> [..., k] in a row's order. k is a multiple of the grid's PERIOD."""
    return weights if grid == "consecutive" else _swap(weights, STRIDE, GROUP)


def place(group_index: int, row_length: int, grid: Grid = "consecutive") -> str:
    """Where the group with this index in a matrix is, for a message."""
    row, group = divmod(group_index, row_length // GROUP)
    if grid == "consecutive":
        return f"row {row}, group {group} (weights {group * GROUP}..{group * GROUP + GROUP - 1})"
    first = group // STRIDE * PERIOD[grid] + group % STRIDE
    return f"row {row}, group {group} (weights {', '.join(str(first + STRIDE * p) for p in range(GROUP))})"


def _swap(weights: npt.NDArray[Any], outer: int, inner: int) -> npt.NDArray[Any]:
    periods = weights.reshape(*weights.shape[:-1], weights.shape[-1] // (outer * inner), outer, inner)
    return np.ascontiguousarray(periods.swapaxes(-1, -2)).reshape(weights.shape)
