"""Baked weights, which are Sherry's values already -> their codes and scales, read off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import GROUP, PERIOD, Grid, codes_of, place, to_fours
from sherry_gguf.weights.quantize import PIECE, Quantized, expand

F32 = npt.NDArray[np.float32]


def read_baked(weights: F32, grids: Sequence[Grid]) -> Quantized:
    """float32[rows, k] whose groups are those of one of the grids -> codes and magnitudes.

    The magnitudes may be shared by fewer weights than a block has. Raises SherryError if not even 8 share one.
    """
    k = weights.shape[1]
    for grid in grids:
        fours = to_fours(weights, grid)
        codes = codes_of(fours)
        piece = math.gcd(k, PIECE)
        while True:
            scales = np.abs(fours).reshape(len(fours), -1, piece).max(axis=-1)
            wrong = expand(codes, scales) != fours
            if not wrong.any():
                return Quantized(codes, scales, 0, grid)
            if piece <= max(PERIOD[grid], 2 * GROUP):
                break
            piece //= 2
    raise SherryError(
        f"{np.count_nonzero(wrong)} weights of a baked layer are not Sherry's, the first in "
        f"{place(int(np.argmax(wrong)) // GROUP, k, grid)}; the layer was changed after it was baked"
    )
