"""The C side through ctypes: arrays in, arrays out."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_tables import ISAS, RowOps, TileKernel, row_kernels, tile_kernels

from sherry_gguf import llama_cpp
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import GROUP

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

BLOCK = sherry.SHERRY.block  # and activations that share a scale


@dataclass(frozen=True)
class Kind:
    """A type of weights, and the order that its activations have."""

    name: str
    prefix: str  # of the names of its functions
    type_id: int
    block: int
    block_bytes: int
    order: npt.NDArray[np.int64]  # [128]: byte i of a block of activations is activation order[i]
    buffer: str = "CPU_SHERRY"  # the type of memory that keeps it in tiles


_plane, _place = np.divmod(np.arange(BLOCK), BLOCK // GROUP)
_group = _place % 16 * 2 + _place // 16  # of half a block of STQ1_0: the even ones, then the odd ones

SHERRY = Kind("sherry", "sherry", sherry.SHERRY.type_id, BLOCK, sherry.SHERRY.block_bytes, 4 * _place + _plane)
_plane_g32, _place_g32 = np.divmod(np.arange(32), 8)

SHERRY_G32 = Kind("sherry_g32", "sherry_g32", 520, 32, 7, 4 * _place_g32 + _plane_g32)
SHERRY_2P = Kind("sherry_2p", "sherry_2p", 521, BLOCK, 44, SHERRY.order)
STQ1_0 = Kind("stq1_0", "stq1", 43, 256, 42, _group // 16 * 64 + _group % 16 + 16 * _plane)
Q8_0 = Kind("q8_0", "q8_0", 8, 32, 34, np.arange(32), "CPU_REPACK")  # upstream's

# block_q8_sherry of ggml-sherry.h
ACTIVATIONS = np.dtype([("d", np.float32), ("sum", np.int32), ("qs", np.int8, BLOCK)])

TILE_ROWS = 32
TILE_BYTES = TILE_ROWS * sherry.SHERRY.block_bytes

GGML_TYPE_F32 = 0
GGML_TYPE_I32 = 26


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@dataclass(frozen=True)
class Ggml:
    base: ctypes.CDLL
    cpu: ctypes.CDLL

    def quantize(self, weights: F32, importance: F32 | None = None, kind: Kind = SHERRY) -> U8:
        """float32[rows, k] (and importance float32[k]) -> blocks, of SHERRY uint8[rows, k/128*22]."""
        rows, k = weights.shape
        out = np.full((rows, k // kind.block * kind.block_bytes), 0xCC, dtype=np.uint8)
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        function = getattr(self.base, f"quantize_{kind.name}")
        function.restype = ctypes.c_size_t
        size = function(
            pointer(weights),
            pointer(out),
            ctypes.c_int64(rows),
            ctypes.c_int64(k),
            None if importance is None else pointer(importance),
        )
        assert size == out.nbytes
        return out

    def dequantize(self, blocks: U8, kind: Kind = SHERRY) -> F32:
        rows, row_bytes = blocks.shape
        out = np.empty((rows, row_bytes // kind.block_bytes * kind.block), dtype=np.float32)
        getattr(self.base, f"dequantize_row_{kind.name}")(pointer(blocks), pointer(out), ctypes.c_int64(out.size))
        return out

    def changed_groups(self, weights: F32, kind: Kind = SHERRY) -> int:
        function = getattr(self.base, f"ggml_{kind.prefix}_changed_groups")
        function.restype = ctypes.c_int64
        changed: int = function(pointer(weights), ctypes.c_int64(weights.size))
        return changed

    def is_valid(self, type_id: int, data: npt.NDArray[Any]) -> bool:
        self.base.ggml_validate_row_data.restype = ctypes.c_bool
        valid: bool = self.base.ggml_validate_row_data(type_id, pointer(data), ctypes.c_size_t(data.nbytes))
        return valid

    def row(self, kernel: str, kind: Kind) -> RowOps:
        ops: RowOps = getattr(row_kernels(self.cpu)[kernel], kind.name)
        return ops

    def activations(self, kernel: str, x: F32, kind: Kind = SHERRY) -> npt.NDArray[np.void]:
        """float32[k] -> ACTIVATIONS[k/128]."""
        out = np.zeros(x.size // BLOCK, dtype=ACTIVATIONS)
        self.row(kernel, kind).quantize(pointer(x), pointer(out), x.size)
        return out

    @staticmethod
    def pack_activations(lanes: npt.NDArray[np.int8], kind: Kind = SHERRY) -> npt.NDArray[np.void]:
        """int8[n, 128] in the order of the weights -> ACTIVATIONS[n] of scale 1."""
        x = np.zeros(len(lanes), dtype=ACTIVATIONS)
        x["qs"] = lanes[:, kind.order]
        x["sum"] = lanes.sum(axis=1, dtype=np.int32)
        x["d"] = 1
        return x

    @staticmethod
    def unpack_activations(x: npt.NDArray[np.void], kind: Kind = SHERRY) -> npt.NDArray[np.int8]:
        """ACTIVATIONS[n] -> int8[n, 128] in the order of the weights, without their scale."""
        lanes = np.empty((x.size, BLOCK), np.int8)
        lanes[:, kind.order] = x["qs"]
        return lanes

    def integer_sums(self, kernel: str, row: U8, x: npt.NDArray[np.void], kind: Kind = SHERRY) -> npt.NDArray[np.int32]:
        """One row of blocks and its activations -> int32[k/128], the sums inside vec_dot."""
        out = np.empty(x.size, dtype=np.int32)
        self.row(kernel, kind).isums(x.size * BLOCK, pointer(out), pointer(row), pointer(x))
        return out

    def vec_dot(self, kernel: str, row: U8, x: npt.NDArray[np.void], kind: Kind = SHERRY) -> float:
        out = np.empty(1, dtype=np.float32)
        self.row(kernel, kind).vec_dot(x.size * BLOCK, pointer(out), 0, pointer(row), 0, pointer(x), 0, 1)
        return float(out[0])

    def compute(
        self,
        operator: str,
        *operands: npt.NDArray[Any],
        tiles: bool = False,
        threads: int = 2,
        permute: tuple[int, int, int, int] | None = None,
        kind: Kind = SHERRY,
    ) -> F32:
        """Result of one ggml operator. uint8 operands are blocks, of SHERRY [..., k/128*22], in rows or in tiles. With
        ``permute``, axis i of the second operand (0 is the last one of NumPy) becomes axis permute[i] first."""
        with contextlib.ExitStack() as stack:
            context: _Context = stack.enter_context(_Context(self.base))
            tensors = []
            for operand in operands:
                if tiles and operand.dtype == np.uint8:
                    tiled = stack.enter_context(self.tiled(operand.shape, kind))
                    tiled.set(0, np.ascontiguousarray(operand).reshape(-1))
                    tensors.append(tiled.handle)
                else:
                    tensors.append(context.tensor(operand, kind))
            if permute:
                tensors[1] = context.call("permute", context.handle, ctypes.c_void_p(tensors[1]), *permute)
            result = context.call(operator, context.handle, *map(ctypes.c_void_p, tensors))
            graph = ctypes.c_void_p(context.call("new_graph", context.handle))
            self.base.ggml_build_forward_expand(graph, ctypes.c_void_p(result))
            assert self.cpu.ggml_graph_compute_with_ctx(context.handle, graph, threads) == 0
            return context.read(result)

    def buffer_type(self, name: str) -> ctypes.c_void_p:
        """Of those that the CPU has beside its own."""
        self.cpu.ggml_backend_cpu_reg.restype = self.base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
        self.base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
        self.base.ggml_backend_buft_name.restype = ctypes.c_char_p
        registry = ctypes.c_void_p(self.cpu.ggml_backend_cpu_reg())
        address = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        for found in get(self.base.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0))):
            if found is None:  # the last one
                break
            if self.base.ggml_backend_buft_name(ctypes.c_void_p(found)) == name.encode():
                return ctypes.c_void_p(found)
        raise LookupError(f"the library has no {name}")

    @contextlib.contextmanager
    def tiled(self, shape: tuple[int, ...], kind: Kind = SHERRY) -> Iterator[TiledTensor]:
        """A tensor of blocks, of SHERRY [..., k/128*22], in the buffer type that keeps it in tiles."""
        with _Context(self.base, memory=False) as context:
            tensor = context.new_tensor(kind.type_id, [*shape[:-1], shape[-1] // kind.block_bytes * kind.block])
            buffer_type = self.buffer_type(kind.buffer)
            buffer = ctypes.c_void_p(context.call("backend_alloc_ctx_tensors_from_buft", context.handle, buffer_type))
            try:
                yield TiledTensor(self.base, tensor)
            finally:
                self.base.ggml_backend_buffer_free(buffer)


@dataclass(frozen=True)
class TiledTensor:
    _base: ctypes.CDLL
    handle: int

    def set(self, offset: int, data: U8) -> None:
        self._move("set", offset, data)

    def get(self, offset: int, size: int) -> U8:
        data = np.zeros(size, dtype=np.uint8)
        self._move("get", offset, data)
        return data

    def _move(self, direction: str, offset: int, data: U8) -> None:
        function = getattr(self._base, f"ggml_backend_tensor_{direction}")
        sizes = ctypes.c_size_t(offset), ctypes.c_size_t(data.nbytes)
        function(ctypes.c_void_p(self.handle), pointer(data), *sizes)


class _Context:
    """A ggml context, with memory for its tensors' data or without."""

    def __init__(self, base: ctypes.CDLL, memory: bool = True) -> None:
        self._base = base
        self._memory = memory

    def __enter__(self) -> _Context:
        self.handle = ctypes.c_void_p(self.call("init", _InitParams(64 << 20, None, not self._memory)))
        return self

    def __exit__(self, *_: object) -> None:
        self._base.ggml_free(self.handle)

    def call(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._base, f"ggml_{name}")
        function.restype = ctypes.c_void_p
        return function(*arguments)

    def new_tensor(self, type_id: int, shape: list[int]) -> int:
        ne = (ctypes.c_int64 * len(shape))(*reversed(shape))
        tensor: int = self.call("new_tensor", self.handle, type_id, len(shape), ne)
        return tensor

    def tensor(self, array: npt.NDArray[Any], kind: Kind = SHERRY) -> int:
        shape = list(array.shape)
        if array.dtype == np.uint8:
            shape[-1] = shape[-1] // kind.block_bytes * kind.block
        tensor = self.new_tensor({"u": kind.type_id, "f": GGML_TYPE_F32, "i": GGML_TYPE_I32}[array.dtype.kind], shape)
        array = np.ascontiguousarray(array)
        ctypes.memmove(self.call("get_data", ctypes.c_void_p(tensor)), array.ctypes.data, array.nbytes)
        return tensor

    def read(self, tensor: int) -> F32:
        self._base.ggml_nelements.restype = ctypes.c_int64
        n = self._base.ggml_nelements(ctypes.c_void_p(tensor))
        if n == 0:
            return np.zeros(0, np.float32)
        data = self.call("get_data_f32", ctypes.c_void_p(tensor))
        return np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (n,)).copy()


@pytest.fixture(scope="session")
def ggml(runtime: llama_cpp.Build) -> Ggml:
    library = Ggml(runtime.lib("ggml-base"), runtime.lib("ggml-cpu"))
    library.cpu.ggml_cpu_init()
    return library


# instructions that a kernel needs, as ggml_cpu_has_* names them
NEEDS = {
    "generic": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512",),
    "avx512vbmi": ("avx512", "avx512_vbmi"),
    "amx": ("avx512", "avx512_vbmi", "amx_int8"),
    "neon": ("neon",),
}


def skip_without(ggml: Ggml, name: str, found: bool) -> None:
    """Skip if the library has no such kernel for a reason."""
    if not found:
        has = [getattr(ggml.cpu, f"ggml_cpu_has_{feature}")() for feature in NEEDS[name]]
        assert not all(has), f"the library is compiled with {', '.join(NEEDS[name])}, but has no {name} kernel"
        pytest.skip(f"the library is compiled for a machine without {name}")


@pytest.fixture(params=["generic", "avx2", "neon"])
def kernel(request: pytest.FixtureRequest, ggml: Ggml) -> str:
    """Of one row."""
    skip_without(ggml, request.param, request.param in row_kernels(ggml.cpu))
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["rows", "tiles"])
def tiles(request: pytest.FixtureRequest) -> bool:
    """Where the weights of a product lie."""
    return bool(request.param)


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    return {kind.name: kind for kind in (SHERRY, SHERRY_G32, SHERRY_2P, STQ1_0)}


@pytest.fixture
def stq1_0() -> Kind:
    return STQ1_0


@pytest.fixture
def g32() -> Kind:
    return SHERRY_G32


@pytest.fixture
def two_planes() -> Kind:
    return SHERRY_2P


@pytest.fixture
def q8_0() -> Kind:
    return Q8_0


@pytest.fixture(params=ISAS)
def tile_kernel(request: pytest.FixtureRequest, ggml: Ggml) -> TileKernel:
    kernels = tile_kernels(ggml.cpu)
    skip_without(ggml, request.param, request.param in kernels)
    return kernels[request.param]


@pytest.fixture(scope="session")
def kernels_program(runtime: llama_cpp.Build) -> list[str]:
    """What a C compiler takes to make the program kernels.c with all kernels that its flags allow."""
    ggml = runtime.source / "ggml"
    sources = [
        Path(__file__).with_name("kernels.c"),
        ggml / "src/ggml-sherry.c",
        ggml / "src/ggml-sherry-g32.c",
        ggml / "src/ggml-sherry-2p.c",
        ggml / "src/ggml-stq1.c",
        *sorted((ggml / "src/ggml-cpu/sherry").glob("*.c")),
    ]
    return [*(f"-I{ggml / folder}" for folder in ("include", "src", "src/ggml-cpu")), *map(str, sources), "-lm"]


@pytest.fixture(scope="session")
def dequantized_activations(ggml: Ggml) -> Callable[[F32], F64]:
    """float32[..., k] -> float64[..., k]: the values that a kernel multiplies with."""

    def rounded(x: F32) -> F64:
        blocks = ggml.activations("generic", np.ascontiguousarray(x.reshape(-1)))
        return (ggml.unpack_activations(blocks) * blocks["d"].astype(np.float64)[:, None]).reshape(x.shape)

    return rounded
