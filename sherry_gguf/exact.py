"""The types that can hold a Sherry matrix as it was trained, smallest first, and what each can hold.

Exactly means: every weight is the trained one, alpha rounded once to fp16. A type does so where a scale is shared by
its whole block; where it is, SHERRY and STQ1_0 alone mind that there is one zero in every group of four, and which four
weights these are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf import blocks, stq1_0, ternary
from sherry_gguf.format import BLOCK, BLOCK_BYTES, GROUP, TYPE_NAME
from sherry_gguf.groups import STRIDE, Groups

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ExactType:
    """name         as gguf-py has it
    block         weights that share a scale
    block_bytes   of the file
    unpack        uint8[rows, k/block*block_bytes] -> t int8[rows, k]: -1, 0 or 1, scales float32[rows, k/block]
    groups        each of which has one zero; None: zeros are anywhere
    """

    name: str
    block: int
    block_bytes: int
    unpack: Callable[[U8], tuple[I8, F32]]
    groups: Groups | None = None

    def __str__(self) -> str:
        """What a matrix must be like, for a message."""
        return f"its blocks have {self.block} weights and one scale{_ONE_ZERO[self.groups]}"


_ONE_ZERO: dict[Groups | None, str] = {
    None: "",
    "consecutive": f", and one zero in every {GROUP} neighbours",
    "stride16": f", and one zero in every {GROUP} weights {STRIDE} apart",
}


def _unpack_sherry(data: U8) -> tuple[I8, F32]:
    codes, scales = blocks.unpack(data)
    return blocks.ternary(codes), scales


STQ1_0 = ExactType(stq1_0.TYPE_NAME, stq1_0.BLOCK, stq1_0.BLOCK_BYTES, stq1_0.unpack_ternary, stq1_0.GRID)
SHERRY = ExactType(TYPE_NAME, BLOCK, BLOCK_BYTES, _unpack_sherry, "consecutive")
EXACT_TYPES = (
    STQ1_0,
    SHERRY,
    ExactType("TQ1_0", 256, 54, ternary.unpack_tq1_0),
    ExactType("TQ2_0", 256, 66, ternary.unpack_tq2_0),
    ExactType("Q2_0", 64, 18, ternary.unpack_q2_0),
    ExactType("Q4_0", 32, 18, ternary.unpack_q4_0),
)
BY_NAME = {kind.name: kind for kind in EXACT_TYPES}
