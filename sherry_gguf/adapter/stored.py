"""Upstream's converter of LoRAs, whose file is then written again with types that hold its tensors exactly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sherry_gguf import llama_cpp
from sherry_gguf.adapter.lora import Lora
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.formats.q4_0 import Q4_0
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.formats.tq2_0 import TQ2_0

F32 = npt.NDArray[np.float32]

_PROGRAM = "convert_lora_to_gguf.py"
# Rows of A have as many weights as the base's layer has inputs, rows of B as many as the LoRA has ranks.
TYPES = (TQ2_0, Q4_0)
REST = "F16"


@dataclass(frozen=True)
class Stored:
    """types: type -> how many tensors; weights: of all tensors; n_bytes: of their data."""

    types: dict[str, int]
    weights: int
    n_bytes: int


def convert_lora(lora: Lora, directory: Path, outfile: Path, outtype: str = "f32") -> None:
    """Write the LoRA in ``directory``, a copy of ``lora`` or itself, by upstream's converter.

    outtype: f32, f16 or another of its --outtype. Raises SherryError with its last word where it stops.
    """
    command = [sys.executable, llama_cpp.source() / _PROGRAM, directory, "--base", lora.base, "--outfile", outfile]
    done = subprocess.run(
        [str(part) for part in [*command, "--outtype", outtype]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SherryError(f"{lora.directory}: llama.cpp's converter of LoRAs stopped: {said}")


def type_for(row: int) -> TensorType | None:
    """The smallest type for ternary rows of so many weights; None: F16."""
    return next((t for t in TYPES if row % t.block == 0), None)


def write_exactly(converted: Path, outfile: Path) -> Stored:
    """Write ``converted``, an adapter whose tensors are ternary in F32, with each tensor in the type for its rows.

    Metadata stay as they are. Raises SherryError for a tensor that its type would change.
    """
    import gguf

    reader = gguf.GGUFReader(converted)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(outfile, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of_array)
    counts: dict[str, int] = {}
    weights = n_bytes = 0
    for tensor in reader.tensors:
        with naming(tensor.name):
            data, type_name = _packed(tensor.data)
        writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
        counts[type_name] = counts.get(type_name, 0) + 1
        weights, n_bytes = weights + tensor.data.size, n_bytes + data.nbytes
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{max(counts, key=lambda name: counts[name])}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Stored(counts, weights, n_bytes)


def _packed(weights: F32) -> tuple[npt.NDArray[Any], str]:
    """float32[..., row] -> its bytes in the type for its rows, and the type's name."""
    row = weights.shape[-1]
    tensor_type = type_for(row)
    if tensor_type is not None:
        return tensor_type.pack(weights.reshape(-1, row)).reshape(*weights.shape[:-1], -1), tensor_type.name
    halves = weights.astype(np.float16)
    if not np.array_equal(halves, weights):
        raise SherryError("has weights that are no fp16 numbers")
    return halves, REST
