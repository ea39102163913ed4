"""Types that gguf-py cannot quantize (q4_K, q5_K, q6_K), through ggml's own C in the built library."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf import llama_cpp
from sherry_gguf.formats.registration import use_quantizer

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def use_library_quantizers(types: Iterable[str]) -> None:
    """Make ``gguf.quants.quantize`` write these types (``q4_K``), by the library of the current build.

    Raises SherryError if there is no build, and there are types.
    """
    import gguf

    for name in types:
        library = llama_cpp.find_build().lib("ggml-base")
        qtype = gguf.GGMLQuantizationType[name.upper()]
        use_quantizer(gguf, qtype, partial(_quantize_rows, library, qtype.value, gguf.GGML_QUANT_SIZES[qtype]))


def _quantize_rows(library: Any, type_id: int, sizes: tuple[int, int], rows: F32) -> U8:
    """float32[rows, k] -> uint8[rows, k / block * type size], by ggml_quantize_chunk without an imatrix."""
    block, type_size = sizes
    rows = np.ascontiguousarray(rows)
    n_rows, k = rows.shape
    out = np.empty((n_rows, k // block * type_size), dtype=np.uint8)
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    written = function(type_id, rows.ctypes.data, out.ctypes.data, 0, n_rows, k, None)
    assert written == out.nbytes
    return out
