"""GGUF files built in bytes, so that they can be anything, and matrices on either grid."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sherry_gguf.formats import sherry, sherry_2p, sherry_g32, stq1_0
from sherry_gguf.formats.q2_0 import Q2_0

STRING, UINT32 = 8, 4
LAYOUTS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(type_id: int, content: Any) -> bytes:
    return string(content) if type_id == STRING else struct.pack(LAYOUTS[type_id], content)


def entry(key: str, type_id: int, content: Any) -> bytes:
    return string(key) + struct.pack("<I", type_id) + value(type_id, content)


def array(key: str, element: int, contents: Sequence[Any]) -> bytes:
    head = string(key) + struct.pack("<IIQ", 9, element, len(contents))
    return head + b"".join(value(element, content) for content in contents)


def info(name: str, shape: Sequence[int], type_id: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", type_id, offset)


def pad(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


ENTRIES = (entry("general.architecture", STRING, "llama"), array("tokenizer.ggml.tokens", STRING, ["a", "b", "ü"]))


def gguf_bytes(
    tensors: Sequence[tuple[str, Sequence[int], int, bytes]],
    entries: Sequence[bytes] = ENTRIES,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """tensors: name, shape with the row first, type id, bytes"""
    if alignment != 32:
        entries = [*entries, entry("general.alignment", UINT32, alignment)]
    infos, data = b"", b""
    for name, shape, type_id, content in tensors:
        infos += info(name, shape, type_id, len(data))
        data += pad(content, alignment)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + infos
    return (pad(head, alignment) if tensors else head) + data


@pytest.fixture(autouse=True, scope="session")
def one_gguf(pinned_gguf: Any) -> None:
    """These tools take any gguf-py; in this process it is the pinned one, in those of the commands it is PyPI's."""


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """build(tensors, ...) -> path, as gguf_bytes"""

    def make(*arguments: Any, name: str = "x.gguf", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(gguf_bytes(*arguments, **options))
        return path

    return make


def sherry_blocks(rows: int, k: int, seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 32, (rows, k // 4), dtype=np.uint8)
    return sherry.BLOCKS.pack(codes, generator.uniform(0.5, 2, (rows, k // 128)).astype(np.float32)).tobytes()


def sherry_g32_blocks(rows: int, k: int, seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 32, (rows, k // 4), dtype=np.uint8)
    return sherry_g32.BLOCKS.pack(codes, generator.uniform(0.5, 2, (rows, k // 32)).astype(np.float32)).tobytes()


def sherry_2p_blocks(rows: int, k: int, seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 32, (2, rows, k // 4), dtype=np.uint8)
    scales = generator.uniform(0.5, 2, (2, rows, k // 128)).astype(np.float16)
    return sherry_2p.pack_planes(*codes, *scales).tobytes()


def stq1_0_blocks(rows: int, k: int, seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 32, (rows, k // 4), dtype=np.uint8)
    return stq1_0.BLOCKS.pack(codes, generator.uniform(0.5, 2, (rows, k // 256)).astype(np.float32)).tobytes()


def q2_0_blocks(rows: int, k: int, seed: int = 0) -> bytes:
    """Dense ternary weights under one scale per 64."""
    t = np.random.default_rng(seed).integers(-1, 2, (rows * k // 64, 64)).astype(np.float32)
    return Q2_0.encode(t * np.float32(0.5)).tobytes()


def f32(rows: int, k: int) -> bytes:
    return np.arange(rows * k, dtype="<f4").tobytes()


@pytest.fixture(scope="session")
def parts() -> SimpleNamespace:
    """The functions above, for tests that build a file's bytes or a tensor's."""
    functions = (
        string, value, entry, array, info, pad, gguf_bytes, sherry_blocks, sherry_g32_blocks, sherry_2p_blocks,
        stq1_0_blocks, q2_0_blocks, f32,
    )  # fmt: skip
    return SimpleNamespace(**{function.__name__: function for function in functions})
