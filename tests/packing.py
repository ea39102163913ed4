"""Ternary matrices made by hand, and their bytes in every type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sherry_gguf.formats import table
from sherry_gguf.formats.groups import from_fours, ternary
from sherry_gguf.formats.registration import use_exact_q4_0

IDS = {
    "SHERRY": 512, "SHERRY_G32": 520, "SHERRY_2P": 521, "STQ1_0": 43, "TQ1_0": 34, "TQ2_0": 35, "Q2_0": 42, "Q4_0": 2,
}  # fmt: skip
FILE_TYPES = IDS | {"STQ1_0": 513, "TQ1_0": 36, "TQ2_0": 37, "Q2_0": 41}
# types that gguf-py has from this package; the bytes of the others are gguf-py's own
OWN = ("SHERRY", "SHERRY_G32", "SHERRY_2P", "STQ1_0")


def pack(name: str, weights: npt.NDArray[np.float32]) -> bytes:
    """float32[rows, k] that the type holds -> its bytes. The one Q4_0 of gguf-py is the exact one from here on."""
    import gguf

    tensor_type = table.named(name)
    assert tensor_type is not None
    packed = tensor_type.pack(weights).tobytes()
    if name not in OWN:
        use_exact_q4_0()
        assert gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name]).tobytes() == packed
    return packed


def of_codes(codes: npt.NDArray[np.uint8], grid: str) -> npt.NDArray[np.float32]:
    """codes uint8[rows, k/4] -> -1, 0 or 1 float32[rows, k] in a row's order."""
    return from_fours(ternary(codes), grid).astype(np.float32)  # type: ignore[arg-type]
