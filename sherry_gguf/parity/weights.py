"""The tensors of a GGUF that Sherry layers became: their types, and exact ones weight by weight without tolerance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.types import OUTPUT, TOKEN_EMBEDDING, TypeChoice, has_choice, parse_type
from sherry_gguf.errors import SherryError
from sherry_gguf.exact import BY_NAME, SHERRY
from sherry_gguf.format import TYPE_NAME
from sherry_gguf.reader import open_gguf
from sherry_gguf.weight_check import WeightCheck, compare


def check(file: Path, checkpoint: Checkpoint, plan: Plan) -> WeightCheck:
    """Compare every tensor of ``file`` that is SHERRY, or a Sherry layer in another type that holds one exactly.

    What is expected comes from the checkpoint through upstream's own rewriting (it permutes and stacks rows), in
    float32 with alpha as trained. Memory: a few tensors. Raises SherryError for a file of another model.
    """
    as_trained = _as_trained(file, checkpoint, plan)
    expected = take_tensors(as_trained)
    import gguf

    found = WeightCheck()
    for tensor in open_gguf(file).tensors:
        kind = BY_NAME.get(tensor.tensor_type.name)
        if kind is None or (kind is not SHERRY and tensor.name not in as_trained.exact):
            continue
        if tensor.name not in expected:
            raise SherryError(
                f"{file}: {tensor.name} is no tensor of {checkpoint.path}; give the GGUF's own checkpoint"
            )
        values = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if values.shape != shape:
            raise SherryError(
                f"{file}: {tensor.name} has shape {list(shape)}, in {checkpoint.path} it has {list(values.shape)}; "
                f"give the GGUF's own checkpoint"
            )
        blocks = tensor.data.reshape(-1, tensor.data.shape[-1])
        found += compare(tensor.name, blocks, values.reshape(-1, shape[-1]), kind)
    return found


def other_types(file: Path, checkpoint: Checkpoint, plan: Plan) -> tuple[tuple[str, str], ...]:
    """TypeChoice.overrides that give the Sherry layers which ``file`` has in other types than SHERRY these types.

    A type that the converter cannot write becomes F32. Embedding and output are left out.
    """
    layers: set[str] = _as_trained(file, checkpoint, plan).on_grid - {TOKEN_EMBEDDING, OUTPUT}
    return tuple(
        (f"^{re.escape(tensor.name)}$", _writable(tensor.tensor_type.name))
        for tensor in open_gguf(file).tensors
        if tensor.name in layers and tensor.tensor_type.name != TYPE_NAME and has_choice(tensor.name, len(tensor.shape))
    )


def _as_trained(file: Path, checkpoint: Checkpoint, plan: Plan) -> Any:
    """Upstream's converter with all tensors of the checkpoint prepared, none of them read yet."""
    llama_cpp.use_pinned_gguf()
    instance = open_model(Job(checkpoint, plan, TypeChoice(), as_trained=True), file)
    instance.prepare_tensors()
    return instance


def _writable(type_name: str) -> str:
    if type_name in BY_NAME:
        return type_name.lower()
    try:
        return parse_type(type_name)
    except SherryError:
        return "f32"
