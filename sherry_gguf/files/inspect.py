"""What a GGUF file holds: its types, what its ternary tensors are like, odd ids, and whether llama.cpp reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sherry_gguf import format as sherry
from sherry_gguf.files.codecs import TERNARY
from sherry_gguf.files.header import FILE_TYPE_KEY, Header, read_header
from sherry_gguf.files.measure import Measured, measure
from sherry_gguf.files.types import LAST_UPSTREAM_ID, STQ1_0, Typed, find_types, upstream_types
from sherry_gguf.format import VERSION_KEY

UNKNOWN = "unknown"
_LONGEST_STOCK_NAME = 63  # bytes; GGML_MAX_NAME holds a 0 as well


@dataclass(frozen=True)
class Inspected:
    """A tensor, and what it is like if it is ternary."""

    typed: Typed
    measured: Measured | None

    @property
    def type_name(self) -> str:
        return self.typed.type.name if self.typed.type else UNKNOWN

    @property
    def type_id(self) -> int:
        return self.typed.tensor.type_id


@dataclass(frozen=True)
class Inspection:
    """oddities: what a person should know about the ids; refusals: why stock llama.cpp does not read the file."""

    header: Header
    tensors: Sequence[Inspected]
    oddities: Sequence[str]
    refusals: Sequence[str]

    def by_type(self) -> dict[tuple[str, int], list[Inspected]]:
        """(type, id) -> tensors, by id"""
        groups: dict[tuple[str, int], list[Inspected]] = {}
        for tensor in sorted(self.tensors, key=lambda tensor: tensor.type_id):
            groups.setdefault((tensor.type_name, tensor.type_id), []).append(tensor)
        return groups


def inspect(file: Path, progress: bool = False) -> Inspection:
    """Reads the header, and of the ternary tensors all weights, chunk by chunk.

    Raises SherryError for what is no GGUF file or is damaged; a type that cannot be told is an oddity instead.
    """
    header = read_header(file)
    found = find_types(header)
    tensors = []
    for typed in tqdm(found, desc="Inspecting", unit="tensor", disable=not progress):
        is_candidate = typed.type is not None and typed.type.name in TERNARY and typed.tensor.weights
        measured = measure(typed, header) if is_candidate else None
        tensors.append(Inspected(typed, measured if measured and measured.is_ternary else None))
    return Inspection(header, tensors, _oddities(found), _refusals(found))


def as_json(inspection: Inspection) -> dict[str, Any]:
    """All that was found, tensor by tensor; sizes in bytes."""
    header = inspection.header
    return {
        "file": str(header.path),
        "bytes": len(header.data),
        "gguf_version": header.version,
        "alignment": header.alignment,
        "architecture": header.value("general.architecture"),
        "name": header.value("general.name"),
        "file_type": header.value(FILE_TYPE_KEY),
        VERSION_KEY: header.value(VERSION_KEY),
        "types": [{"type": name, "id": type_id, **figures(t)} for (name, type_id), t in inspection.by_type().items()],
        "all": figures(inspection.tensors),
        "tensors": [_tensor(tensor) for tensor in inspection.tensors],
        "oddities": list(inspection.oddities),
        "stock_llama_cpp": {"reads": not inspection.refusals, "because": list(inspection.refusals)},
    }


def figures(tensors: Sequence[Inspected]) -> dict[str, Any]:
    """How many tensors, weights and bytes without padding, and the bits per weight; None without weights."""
    weights = sum(tensor.typed.tensor.weights for tensor in tensors)
    n_bytes = sum(tensor.typed.n_bytes for tensor in tensors)
    return {
        "tensors": len(tensors),
        "weights": weights,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / weights if weights else None,
    }


def _tensor(tensor: Inspected) -> dict[str, Any]:
    typed, measured = tensor.typed, tensor.measured
    said: dict[str, Any] = {
        "name": typed.tensor.name,
        "shape": list(typed.tensor.shape),
        "type": tensor.type_name,
        "id": tensor.type_id,
        "bytes": typed.n_bytes,
        "bytes_with_padding": typed.tensor.span,
    }
    if typed.problem:
        said["problem"] = typed.problem
    if measured:
        said["ternary"] = {
            "grid": measured.grid,
            "groups": measured.groups,
            "groups_with_one_zero": measured.one_zero,
            "codes": None if measured.codes is None else measured.codes.tolist(),
            "scales": measured.scales.summary(),
            "empty_blocks": measured.empty_blocks,
            "scale_shared_by": measured.shared,
        }
    return said


def _oddities(found: Sequence[Typed]) -> list[str]:
    said = []
    for (name, type_id), n in _count(typed for typed in found if not typed.problem):
        if type_id == sherry.TYPE_ID:
            said.append(f"id {type_id} ({_tensors(n)}): {name}, a private id of this project")
        elif type_id == LAST_UPSTREAM_ID and name == STQ1_0.name:
            said.append(f"id {type_id} ({_tensors(n)}): {name}, as in its first files; the id is Q2_0's since")
        elif type_id > LAST_UPSTREAM_ID and name != UNKNOWN:
            said.append(f"id {type_id} ({_tensors(n)}): the bytes are those of {name}")
        elif name == UNKNOWN:
            said.append(f"id {type_id} ({_tensors(n)}): unknown, and neither STQ1_0 nor SHERRY by its bytes")
    return said + [f"{typed.tensor.name}: {typed.problem}" for typed in found if typed.problem]


def _refusals(found: Sequence[Typed]) -> list[str]:
    """Why llama.cpp without the patch, at the pin, refuses the types or the layout of the file."""
    said = []
    for (name, type_id), n in _count(found):
        if type_id not in upstream_types():
            said.append(f"it does not know id {type_id} ({name}, {_tensors(n)})")
        elif name == STQ1_0.name:
            said.append(f"it takes id {type_id} for Q2_0, but these {_tensors(n)} are {name}")
    doubtful = [typed.tensor for typed in found if typed.problem and typed.tensor.type_id in upstream_types()]
    if doubtful:
        said.append(
            f"the bytes of {_tensors(len(doubtful))} may not be what it takes them for, the first is {doubtful[0].name}"
        )
    long = [typed.tensor.name for typed in found if len(typed.tensor.name.encode()) > _LONGEST_STOCK_NAME]
    if long:
        said.append(f"names may have {_LONGEST_STOCK_NAME} bytes, that of {long[0]} is longer")
    return said


def _count(found: Iterable[Typed]) -> list[tuple[tuple[str, int], int]]:
    """((type, id), how many), by id"""
    counts = Counter((typed.type.name if typed.type else UNKNOWN, typed.tensor.type_id) for typed in found)
    return sorted(counts.items(), key=lambda item: (item[0][1], item[0][0]))


def _tensors(n: int) -> str:
    return f"{n} tensor{'s' if n != 1 else ''}"
