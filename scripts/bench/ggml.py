"""ggml's libraries in a build, called through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf import llama_cpp
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry_2p import SHERRY_2P

U8 = npt.NDArray[np.uint8]


def build_in(directory: Path | None) -> llama_cpp.Build:
    """A build of one's own, whose programs and libraries are in bin/ there; None: the package's."""
    return llama_cpp.Build(directory / "bin", Path(), ()) if directory else llama_cpp.build()


class TraitsCpu(ctypes.Structure):
    """ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


class Ggml:
    """The libraries of a build."""

    def __init__(self, build: llama_cpp.Build) -> None:
        self.base, self.cpu = build.lib("ggml-base"), build.lib("ggml-cpu")
        self.base.ggml_type_name.restype = ctypes.c_char_p
        self.base.ggml_row_size.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(TraitsCpu)
        self.cpu.ggml_cpu_init()

    def type_id(self, name: str) -> int:
        for type_id in range(SHERRY_2P.type_id + 1):  # the last one that a file can hold
            if self.base.ggml_type_name(type_id) == name.encode():
                return type_id
        raise SherryError(f"this build has no type {name!r}")

    def traits(self, type_id: int) -> Any:
        return self.cpu.ggml_get_type_traits_cpu(type_id).contents

    def row_bytes(self, type_id: int, k: int) -> int:
        return int(self.base.ggml_row_size(type_id, ctypes.c_int64(k)))

    def quantize(self, type_id: int, values: npt.NDArray[np.float32]) -> U8:
        """float32[rows, k] -> uint8[rows, row_bytes]"""
        rows, k = values.shape
        out = np.zeros((rows, self.row_bytes(type_id, k)), dtype=np.uint8)
        pointers = ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data)
        counts = (ctypes.c_int64(n) for n in (0, rows, k))
        written = self.base.ggml_quantize_chunk(type_id, *pointers, *counts, None)
        if written != out.nbytes:
            raise SherryError(f"ggml wrote {written} bytes of type {type_id}, not {out.nbytes}")
        return out

    def activations(self, type_id: int, values: npt.NDArray[np.float32]) -> U8:
        """float32[columns, k] -> uint8[columns, row_bytes]; for types that are activations only, too"""
        columns, k = values.shape
        out = np.zeros((columns, self.row_bytes(type_id, k)), dtype=np.uint8)
        for column in range(columns):
            self.traits(type_id).from_float(values[column].ctypes.data, out[column].ctypes.data, k)
        return out
