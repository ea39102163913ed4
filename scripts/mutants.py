"""Files that are damaged or lie: mutants of small GGUF files and of JSON, drawn from a seed.

A GGUF file is built as a list of fields, so that a mutant can have another length, count, type id, offset or dimension
in an otherwise whole file; a mutant of JSON has another value, key or nesting somewhere. A part of them are damaged
without regard to structure. The same ``random.Random`` gives the same mutants.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from random import Random
from typing import Any, Final

import numpy as np

from sherry_gguf.formats.table import VERSION_KEY, tensor_types
from sherry_gguf.formats.tensor_type import TensorType

# a field: what it is, and its bytes; "u32" and "u64" are numbers, "string" has no length, which is a field of its own
Field = tuple[str, bytes]

_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9
_EDGES: Final = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 127, 128, 255, 256, 2**16),
    *(2**n + i for n in (31, 32, 62, 63) for i in (-1, 0, 1)),
    2**64 - 1,
]
_IDS: Final = [*range(45), 252, 253, 511, 512, 513, 514, 515, 516, 520, 521, 522, 2**31, 2**32 - 1]
_KEYS: Final = [
    "general.alignment",
    "general.file_type",
    VERSION_KEY,
    "split.count",
    "split.no",
    "general.architecture",
]
_CHARACTERS: Final = [b"", b"\0", b"\n", b"\x1b[31m", b"\xff\xfe", b"a" * 64, b"a" * 70_000, b"../x", "ü".encode() * 9]
_VALUES: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**400,
    "", "x", "../x", "a\0b", "\ud800", "a" * 5000, "(.*)*x", [], {}, [[]], [0], [-1, 0], [2**63], {"": {}},
    "F32", "I64", "F8_E4M3",
]  # fmt: skip


def _string(text: bytes) -> list[Field]:
    return [("u64", struct.pack("<Q", len(text))), ("string", text)]


def _u32(value: int) -> Field:
    return "u32", struct.pack("<I", value)


def _u64(value: int) -> Field:
    return "u64", struct.pack("<Q", value)


def ternary(draw: Random, rows: int, k: int) -> np.ndarray:
    """float32[rows, k]: ternary weights times 0.5 that every type holds, as both grids have their one zero."""
    at = np.arange(k)
    signs = np.random.default_rng(draw.getrandbits(32)).choice(np.array([-0.5, 0.5], np.float32), (rows, k))
    return np.where(at % 4 == at // 16 % 4, np.float32(0), signs)


def whole_gguf(
    draw: Random, types: Sequence[TensorType] | None = None, rows: Sequence[int] = range(1, 5)
) -> list[Field]:
    """The fields of a file that is as it should be: two to six tensors, most ternary, and all kinds of metadata.

    types: of the ternary tensors, all types by default. rows: how many each of their matrices may have.
    """
    alignment = draw.choice([8, 32, 32, 32, 64, 128])
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for number in range(draw.randint(1, 5)):
        tensor_type = draw.choice(types or tensor_types())
        shape = (draw.choice([256, 512]), draw.choice(rows), *draw.choice([(), (), (2,)]))
        weights = ternary(draw, int(np.prod(shape[1:])), shape[0])
        tensors.append(
            (f"blk.{number}.weight", shape, draw.choice(tensor_type.ids), tensor_type.pack(weights).tobytes())
        )
    tensors.append(("output_norm.weight", (5,), 0, np.ones(5, np.float32).tobytes()))
    draw.shuffle(tensors)

    entries: list[list[Field]] = [
        [*_string(b"general.architecture"), _u32(_STRING), *_string(b"llama")],
        [*_string(b"general.file_type"), _u32(_UINT32), _u32(draw.choice([36, 512, 513]))],
        [*_string(VERSION_KEY.encode()), _u32(_UINT32), _u32(draw.choice([1, 2]))],
        [*_string(b"rope.freq_base"), _u32(_FLOAT32), ("data", struct.pack("<f", 1e4))],
        [*_string(b"scores"), _u32(_ARRAY), _u32(_FLOAT32), _u64(3), ("data", struct.pack("<3f", 0, 1, 2))],
        [*_string(b"tokens"), _u32(_ARRAY), _u32(_STRING), _u64(2), *_string(b"a"), *_string("ü".encode())],
    ]
    if alignment != 32 or draw.random() < 0.2:
        entries.append([*_string(b"general.alignment"), _u32(_UINT32), _u32(alignment)])
    fields: list[Field] = [("magic", b"GGUF"), _u32(3), _u64(len(tensors)), _u64(len(entries))]
    fields += chain.from_iterable(entries)
    at = 0
    for name, shape, type_id, content in tensors:
        fields += [
            *_string(name.encode()),
            _u32(len(shape)),
            *map(_u64, shape),
            ("id", struct.pack("<I", type_id)),
            _u64(at),
        ]
        at += len(content) + -len(content) % alignment
    fields.append(("padding", bytes(-sum(len(raw) for _, raw in fields) % alignment)))
    for *_, content in tensors:
        fields += [("data", content), ("padding", bytes(-len(content) % alignment))]
    return fields


def _other(draw: Random, what: str, raw: bytes) -> bytes:
    """Another content for a field."""
    if what in ("u32", "u64", "id"):
        old = int.from_bytes(raw, "little")
        choices = [
            draw.choice(_EDGES),
            old + draw.choice([-32, -8, -1, 1, 8, 32]),
            old ^ 1 << draw.randrange(8 * len(raw)),
            old * 2,
        ]
        value: int = draw.choice(_IDS) if what == "id" else draw.choice(choices)
        return (value % (1 << 8 * len(raw))).to_bytes(len(raw), "little")
    if what == "string":
        strings: list[bytes] = [*_CHARACTERS, draw.choice(_KEYS).encode(), raw + b"x", raw[:-1], raw.upper()]
        return draw.choice(strings)
    return _damaged(draw, raw)


def _damaged(draw: Random, raw: bytes) -> bytes:
    """Bytes changed, cut off, left out or repeated."""
    if not raw:
        return draw.randbytes(draw.randint(1, 8))
    i, j = sorted((draw.randrange(len(raw)), draw.randint(0, len(raw))))
    some = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        some[draw.randrange(len(raw))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    short, longer = raw[:i] + raw[min(j, i + 64) :], raw[:j] + raw[i:j][:64] + raw[j:]
    choices: list[bytes] = [*(3 * [bytes(some)]), raw[:j], short, longer]
    return draw.choice(choices)


def gguf_mutant(draw: Random, types: Sequence[TensorType] | None = None, rows: Sequence[int] = range(1, 5)) -> bytes:
    """A GGUF file, as ``whole_gguf`` makes it, with one to three changes, at times with none."""
    fields = whole_gguf(draw, types, rows)
    for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        at = draw.randrange(len(fields))
        what, raw = fields[at]
        change = draw.random()
        if change < 0.8:
            fields[at] = what, _other(draw, what, raw)
        elif change < 0.86:
            other = draw.randrange(len(fields))
            fields[at], fields[other] = fields[other], fields[at]
        elif change < 0.92:
            fields.insert(at, fields[at])
        else:
            del fields[at]
            fields = fields or [("magic", b"GGUF")]
    whole = b"".join(raw for _, raw in fields)
    return _damaged(draw, whole) if draw.random() < 0.1 else whole


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    keys: Sequence[Any] = (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def json_mutant(draw: Random, text: str) -> bytes:
    """JSON with one to three changes of its values and keys, or damaged as bytes."""
    value = json.loads(text)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        places = _places(value)
        if not places:
            return json.dumps(draw.choice(_VALUES)).encode()
        holder, key = draw.choice(places)
        old, change = holder[key], draw.random()
        if change < 0.3 and isinstance(old, int):
            holder[key] = draw.choice(
                [
                    old + 1,
                    old - 1,
                    old * 2,
                    old // 2,
                    -old,
                    float(old) if abs(old) < 2**1000 else 0.5,
                    str(old),
                    *_EDGES,
                ]
            )
        elif change < 0.6:
            holder[key] = deepcopy(draw.choice(_VALUES))
        elif change < 0.75:
            other, there = draw.choice(places)
            holder[key] = deepcopy(other[there])
        elif change < 0.85 and isinstance(holder, dict):
            holder[draw.choice(["", "x", "__metadata__", str(key) + "x", "a" * 5000, "\n", "model.norm.weight"])] = (
                holder.pop(key)
            )
        else:
            del holder[key]
    whole = json.dumps(value).encode()
    return _damaged(draw, whole) if draw.random() < 0.15 else whole


def safetensors_mutant(draw: Random, content: bytes) -> bytes:
    """A safetensors file with another header, another length of it, or damaged data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.85:
        header = json_mutant(draw, header.decode())
        header += b" " * (-len(header) % 8)
    said = len(header) if draw.random() < 0.9 else draw.choice([*_EDGES, len(header) - 1, len(header) + 8])
    if draw.random() < 0.1:
        data = _damaged(draw, data)
    return (said % 2**64).to_bytes(8, "little") + header + data
