"""What a GGUF file holds: its types, what its ternary tensors are like, odd ids, and whether llama.cpp reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sherry_gguf.files.gguf_file import GgufFile, open_gguf
from sherry_gguf.files.header import FILE_TYPE_KEY
from sherry_gguf.files.identify import upstream_types
from sherry_gguf.files.statistics import Statistics, statistics_of
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.i2_s import I2_S
from sherry_gguf.formats.table import VERSION_KEY, tensor_types

UNKNOWN = "unknown"
_LONGEST_STOCK_NAME = 63  # bytes; GGML_MAX_NAME holds a 0 as well


@dataclass(frozen=True)
class Inspected:
    """A tensor, and what it is like if it is ternary."""

    tensor: FileTensor
    statistics: Statistics | None

    @property
    def type_name(self) -> str:
        return self.tensor.type_name or UNKNOWN

    @property
    def type_id(self) -> int:
        return self.tensor.info.type_id


@dataclass(frozen=True)
class Inspection:
    """oddities: what a person should know about the ids; refusals: why stock llama.cpp does not read the file."""

    file: GgufFile
    tensors: Sequence[Inspected]
    oddities: Sequence[str]
    refusals: Sequence[str]

    def by_type(self) -> dict[tuple[str, int], list[Inspected]]:
        """(type, id) -> tensors, by id"""
        groups: dict[tuple[str, int], list[Inspected]] = {}
        for tensor in sorted(self.tensors, key=lambda tensor: tensor.type_id):
            groups.setdefault((tensor.type_name, tensor.type_id), []).append(tensor)
        return groups


def inspect(path: Path, progress: bool = False) -> Inspection:
    """Reads the header, and of the ternary tensors all weights, chunk by chunk.

    Raises SherryError for what is no GGUF file or is damaged; a type that cannot be told is an oddity instead.
    """
    file = open_gguf(path)
    tensors = [
        Inspected(tensor, statistics_of(tensor) if tensor.ternary_type and tensor.info.weights else None)
        for tensor in tqdm(file.tensors, desc="Inspecting", unit="tensor", disable=not progress)
    ]
    return Inspection(file, tensors, _oddities(file.tensors), _refusals(file.tensors))


def as_json(inspection: Inspection) -> dict[str, Any]:
    """All that was found, tensor by tensor; sizes in bytes."""
    file = inspection.file
    return {
        "file": str(file.path),
        "bytes": len(file.header.data),
        "part": file.part and asdict(file.part),
        "gguf_version": file.header.version,
        "alignment": file.header.alignment,
        "architecture": file.value("general.architecture"),
        "name": file.value("general.name"),
        "file_type": file.value(FILE_TYPE_KEY),
        VERSION_KEY: file.value(VERSION_KEY),
        "types": [{"type": name, "id": type_id, **figures(t)} for (name, type_id), t in inspection.by_type().items()],
        "all": figures(inspection.tensors),
        "tensors": [_as_json(tensor) for tensor in inspection.tensors],
        "oddities": list(inspection.oddities),
        "stock_llama_cpp": {"reads": not inspection.refusals, "because": list(inspection.refusals)},
    }


def figures(tensors: Sequence[Inspected]) -> dict[str, Any]:
    """How many tensors, weights and bytes without padding, and the bits per weight; None without weights."""
    weights = sum(inspected.tensor.info.weights for inspected in tensors)
    n_bytes = sum(inspected.tensor.n_bytes for inspected in tensors)
    return {
        "tensors": len(tensors),
        "weights": weights,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / weights if weights else None,
    }


def _as_json(inspected: Inspected) -> dict[str, Any]:
    tensor, statistics = inspected.tensor, inspected.statistics
    said: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.info.shape),
        "type": inspected.type_name,
        "id": inspected.type_id,
        "bytes": tensor.n_bytes,
        "bytes_with_padding": tensor.info.span,
    }
    if tensor.problem:
        said["problem"] = tensor.problem
    if statistics:
        said["ternary"] = {
            "grid": statistics.grid,
            "groups": statistics.groups,
            "groups_with_one_zero": statistics.one_zero,
            "codes": None if statistics.codes is None else statistics.codes.tolist(),
            "scales": statistics.scales.summary(),
            "empty_blocks": statistics.empty_blocks,
            "scale_shared_by": statistics.shared,
        }
    return said


def _oddities(tensors: Sequence[FileTensor]) -> list[str]:
    said = []
    for (tensor, type_id), n in _count(tensor for tensor in tensors if not tensor.problem):
        found, label = tensor.ternary_type, f"id {type_id} ({_tensors(n)})"
        if tensor.type is None:
            private = " nor ".join(t.name for t in tensor_types() if not t.is_stock)
            said.append(f"{label}: unknown, and neither {private} by its bytes")
        elif tensor.type is I2_S:
            said.append(f"{label}: I2_S of bitnet.cpp, whose bytes are in the order of the machine that wrote the file")
        elif found is None or found.is_stock:
            continue
        elif type_id in upstream_types():
            said.append(
                f"{label}: {found.name}, as in its first files; the id is {upstream_types()[type_id].name}'s since"
            )
        elif type_id == found.type_id and found.format_version is not None:
            said.append(f"{label}: {found.name}, a private id of this project")
        else:
            said.append(f"{label}: the bytes are those of {found.name}")
    return said + [f"{tensor.name}: {tensor.problem}" for tensor in tensors if tensor.problem]


def _refusals(tensors: Sequence[FileTensor]) -> list[str]:
    """Why llama.cpp without the patch, at the pin, refuses the types or the layout of the file."""
    said = []
    for (tensor, type_id), n in _count(tensors):
        upstream = upstream_types().get(type_id)
        if upstream is None:
            said.append(f"it does not know id {type_id} ({tensor.type_name or UNKNOWN}, {_tensors(n)})")
        elif tensor.type is not None and tensor.type is not upstream:
            said.append(f"it takes id {type_id} for {upstream.name}, but these {_tensors(n)} are {tensor.type_name}")
    doubtful = [tensor for tensor in tensors if tensor.problem and tensor.info.type_id in upstream_types()]
    if doubtful:
        said.append(
            f"the bytes of {_tensors(len(doubtful))} may not be what it takes them for, the first is {doubtful[0].name}"
        )
    long = [tensor.name for tensor in tensors if len(tensor.name.encode()) > _LONGEST_STOCK_NAME]
    if long:
        said.append(f"names may have {_LONGEST_STOCK_NAME} bytes, that of {long[0]} is longer")
    return said


def _count(tensors: Iterable[FileTensor]) -> list[tuple[tuple[FileTensor, int], int]]:
    """((the first tensor of a type and id, its id), how many there are), by id"""
    first: dict[tuple[str, int], FileTensor] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for tensor in tensors:
        key = (tensor.type_name or UNKNOWN, tensor.info.type_id)
        first.setdefault(key, tensor)
        counts[key] += 1
    keys = sorted(counts, key=lambda key: (key[1], key[0]))
    return [((first[key], key[1]), counts[key]) for key in keys]


def _tensors(n: int) -> str:
    return f"{n} tensor{'s' if n != 1 else ''}"
