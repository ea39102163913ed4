"""What the CPU backend says it computes of weights in tiles."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

F32, F16, I32 = 0, 1, 26


class Graph:
    """Operators on a tensor in tiles: asked for, not computed."""

    def __init__(self, ggml: Any, kind: Any, context: ctypes.c_void_p, weights: int) -> None:
        self.ggml, self.kind, self.context, self.weights = ggml, kind, context, ctypes.c_void_p(weights)

    def tensor(self, type_id: int, *ne: int) -> ctypes.c_void_p:
        return self.operator("new_tensor", type_id, len(ne), (ctypes.c_int64 * len(ne))(*ne))

    def operator(self, name: str, *operands: Any) -> ctypes.c_void_p:
        function = getattr(self.ggml.base, f"ggml_{name}")
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(self.context, *operands))

    def is_supported(self, operator: ctypes.c_void_p) -> bool:
        base = self.ggml.base
        base.ggml_backend_buft_get_device.restype = ctypes.c_void_p
        base.ggml_backend_dev_supports_op.restype = ctypes.c_bool
        device = base.ggml_backend_buft_get_device(self.ggml.buffer_type(self.kind.buffer))
        answer: bool = base.ggml_backend_dev_supports_op(ctypes.c_void_p(device), operator)
        return answer


@contextlib.contextmanager
def graph(ggml: Any, kind: Any, *shape: int) -> Iterator[Graph]:
    """shape: of the weights, of type kind, as NumPy has it"""

    class Parameters(ctypes.Structure):
        _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    with ggml.tiled((*shape[:-1], shape[-1] // kind.block * kind.block_bytes), kind) as weights:
        ggml.base.ggml_init.restype = ctypes.c_void_p
        context = ctypes.c_void_p(ggml.base.ggml_init(Parameters(1 << 20, None, True)))
        try:
            yield Graph(ggml, kind, context, weights.handle)
        finally:
            ggml.base.ggml_free(context)
