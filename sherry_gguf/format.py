"""The SHERRY block, its sizes, ids and fields: the only place that knows 128, 22 and 512.

A block holds 128 consecutive weights of a row as 32 groups of 4. Every group has exactly one zero and three
weights of equal magnitude, 4 * 2**3 = 32 patterns, named by a 5-bit code (``docs/format.md``):

    code  = sign << 4 | index
    index = zero_pos << 2 | (third differs in sign from first) << 1 | (second differs in sign from first)
    sign  = first is negative

where first, second and third are the non-zero weights of the group in order. In the file:

    qs[16]    byte j: low nibble = index of group j, high nibble = index of group j + 16
    signs[4]  bit g % 8 of byte g // 8 = sign of group g
    d         IEEE fp16 scale, little-endian, finite and >= 0
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

GROUP: Final = 4  # weights in a group
BLOCK: Final = 128  # weights in a block
GROUPS_PER_BLOCK: Final = BLOCK // GROUP
QS_BYTES: Final = 16
SIGN_BYTES: Final = 4
SCALE_BYTES: Final = 2
BLOCK_BYTES: Final = QS_BYTES + SIGN_BYTES + SCALE_BYTES

CODES: Final = 32  # codes 0..31

TYPE_NAME: Final = "SHERRY"
TYPE_ID: Final = 512  # ggml type: a private id, far above those of upstream and the known forks
FILE_TYPE: Final = 512  # general.file_type, LLAMA_FTYPE_MOSTLY_SHERRY

VERSION_KEY: Final = "sherry.format_version"  # uint32; absent means 1
VERSION: Final = 1


def _patterns() -> npt.NDArray[np.int8]:
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
