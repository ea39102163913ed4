"""The kernels of a build one by one, through ctypes: the tables of ggml-cpu/sherry's row.h and tile.h."""

from __future__ import annotations

import ctypes
from typing import Any

ISAS = ("generic", "avx2", "avx512", "avx512vbmi", "amx", "neon")

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class RowOps(ctypes.Structure):
    """ggml_sherry_row_ops: what a kernel does for one type of weights."""

    _fields_ = (
        ("quantize", ctypes.CFUNCTYPE(None, _POINTER, _POINTER, ctypes.c_int64)),
        ("isums", ctypes.CFUNCTYPE(None, _INT, _POINTER, _POINTER, _POINTER)),
        ("vec_dot", ctypes.CFUNCTYPE(None, _INT, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _INT)),
    )


class RowKernel(ctypes.Structure):
    """ggml_sherry_row_kernel."""

    _fields_ = (("name", ctypes.c_char_p), ("sherry", RowOps), ("stq1_0", RowOps), ("g32", RowOps), ("two", RowOps))


_MUL = ctypes.CFUNCTYPE(
    None, _INT, _SIZE, _POINTER, _INT, _INT, _INT, _POINTER, _POINTER, _POINTER, ctypes.c_bool, ctypes.c_bool
)


class Many(ctypes.Structure):
    """ggml_sherry_many."""

    _fields_ = (
        ("allowed", ctypes.CFUNCTYPE(ctypes.c_bool)),
        ("arrange", ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _INT, _INT, _POINTER)),
        (
            "mul",
            ctypes.CFUNCTYPE(None, _INT, _SIZE, _POINTER, _INT, _INT, _INT, _INT, _POINTER, _POINTER),
        ),
    )


class TileKernel(ctypes.Structure):
    """ggml_sherry_tile_kernel."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("table_bytes", _SIZE),
        ("max_tiles", _INT),
        ("pack", ctypes.CFUNCTYPE(None, _POINTER, _SIZE, _POINTER)),
        ("unpack", ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _SIZE)),
        ("pack_stq1_0", _POINTER),
        ("pack_g32", _POINTER),
        ("tables", ctypes.CFUNCTYPE(None, _POINTER, _POINTER)),
        ("tables_g32", ctypes.CFUNCTYPE(None, _POINTER, _POINTER)),
        ("mul", _MUL),
        ("mul_g32", _MUL),
        ("many", ctypes.POINTER(Many)),
    )


def row_kernels(cpu: ctypes.CDLL) -> dict[str, Any]:
    """Those that the library has, by name."""
    return _by_name(cpu.ggml_sherry_row_kernel_named, RowKernel)


def tile_kernels(cpu: ctypes.CDLL) -> dict[str, Any]:
    return _by_name(cpu.ggml_sherry_tile_kernel_named, TileKernel)


def _by_name(find: Any, structure: type[ctypes.Structure]) -> dict[str, Any]:
    find.restype = ctypes.POINTER(structure)
    found = {isa: find(isa.encode()) for isa in ISAS}
    return {isa: kernel.contents for isa, kernel in found.items() if kernel}
