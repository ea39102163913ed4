"""I2_S, TL1 and TL2: the ternary types of bitnet.cpp, under ids that upstream's numbers do not know, or know otherwise.

An I2_S tensor of n weights is n / 4 bytes of codes t + 1, four in a byte with the first in the highest bits, a scale in
float32 for all of them, and 28 bytes without a meaning. Which four weights share a byte depends on the machine that
wrote the file, and nothing in the file tells:

    x86      128 weights of the tensor are 32 bytes; byte j has weights j, j + 32, j + 64, j + 96
    arm      64 weights are 16 bytes; byte j has weights j, j + 16, j + 32, j + 48
    columns  four rows are as many bytes as a row has weights; byte j has weight j of each of them

Those of TL1 and TL2 are in the order of kernels that were made for one shape of matrix; they are told, and not read.

Source: quantize_i2_s in ggml-bitnet-mad.cpp of bitnet.cpp, ggml_nbytes in its llama.cpp. Its converter in Python
writes the first too, and an x86 build without ACT_PARALLEL the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.dense import SHIFTS
from sherry_gguf.formats.tensor_type import BlockType

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

Layout = Literal["x86", "arm", "columns"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)

FILE_TYPE: Final = 40  # general.file_type of bitnet.cpp; upstream's Q1_0 has the number too
_TAIL: Final = 32  # bytes behind the codes, the scale's among them
_NEIGHBOURS: Final[dict[Layout, int]] = {"x86": 32, "arm": 16}
_NO_VALUE: Final = 3


@dataclass(frozen=True, eq=False)
class BitnetType(BlockType):
    """A type whose bytes are those of the whole tensor. sizes: what its tensors may have."""

    def size(self, shape: Sequence[int]) -> int | None:
        """As ``BlockType``; None for a tensor that does not fill its bytes."""
        weights = math.prod(shape)
        return None if weights % self.block else weights // 4 + _TAIL

    def sizes(self, shape: Sequence[int]) -> list[int]:
        size = self.size(shape)
        return [] if size is None else [size]


class _LookUpType(BitnetType):
    """TL1 or TL2. The converter in Python writes neither the tail nor, of TL2, two bits for a weight."""

    def sizes(self, shape: Sequence[int]) -> list[int]:
        with_tail = super().sizes(shape)
        if not with_tail:  # a single weight, for one, which has no row
            return []
        row, rows = shape[0], math.prod(shape[1:])
        in_threes = (row - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
        codes = with_tail[0] - _TAIL
        return [*with_tail, codes, *([in_threes, in_threes + _TAIL] if self.name == "TL2" else [])]


I2_S: Final = BitnetType("I2_S", 36, 64, 16)
TL1: Final = _LookUpType("TL1", 38, 4, 1)
TL2: Final = _LookUpType("TL2", 39, 4, 1)
BITNET_TYPES: Final = {bitnet_type.type_id: bitnet_type for bitnet_type in (I2_S, TL1, TL2)}


def decode(data: U8, shape: Sequence[int], layout: Layout) -> tuple[I8, F32]:
    """A tensor's bytes, its shape with the row's length first -> t int8[rows, k], -1, 0 or 1; the scale float32[1].

    Raises SherryError where the layout does not fit the shape, or the bytes are of no such tensor.
    """
    weights, k = math.prod(shape), shape[0]
    codes = data[: weights // 4]
    parts = (codes[None] >> SHIFTS[::-1, None]) & 3  # [4, n / 4]
    if layout == "columns":
        if weights // k % 4:
            raise SherryError(f"{weights // k} rows are no whole fours, as the layout columns has them")
        ordered = parts.reshape(4, -1, k).swapaxes(0, 1)
    else:
        neighbours = _NEIGHBOURS[layout]
        if weights % (4 * neighbours):
            raise SherryError(
                f"{weights:,} weights are no multiple of {4 * neighbours}, as the layout {layout} has them"
            )
        ordered = parts.reshape(4, -1, neighbours).swapaxes(0, 1)
    t = ordered.reshape(-1, k)
    if (t == _NO_VALUE).any():
        row, column = np.argwhere(t == _NO_VALUE)[0]
        raise SherryError(f"the code of weight {column} of row {row} is 3, no ternary value; it is damaged")
    scale: F32 = np.array(data[weights // 4 :][:4]).view("<f4")
    if not (np.isfinite(scale) & (scale >= 0)).all():
        raise SherryError(f"its scale is {scale[0]}; it is damaged")
    return t.astype(np.int8) - np.int8(1), scale
