"""The tensors of a GGUF that Sherry layers became: their types, and exact ones weight by weight without tolerance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.type_choice import OUTPUT, TOKEN_EMBEDDING, TypeChoice, has_choice, parse_type
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.weights.compare import WeightCheck, compare


def check(path: Path, checkpoint: Checkpoint, plan: Plan) -> WeightCheck:
    """Compare every tensor of the file that is SHERRY, or a Sherry layer in another type that holds one exactly.

    What is expected comes from the checkpoint through upstream's own rewriting (it permutes and stacks rows), in
    float32 with alpha as trained. Memory: a few tensors. Raises SherryError for a file of another model.
    """
    import gguf

    as_trained = _as_trained(path, checkpoint, plan)
    exact, expected = as_trained.recorder.exact, take_tensors(as_trained)
    found = WeightCheck()
    for tensor in open_gguf(path).tensors:
        tensor_type = tensor.ternary_type
        if tensor_type is None or (tensor_type is not SHERRY and tensor.name not in exact):
            continue
        if tensor.name not in expected:
            raise SherryError(f"{tensor.place} is no tensor of {checkpoint.path}; give the GGUF's own checkpoint")
        values = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        shape = tuple(reversed(tensor.info.shape))
        if values.shape != shape:
            raise SherryError(
                f"{tensor.place} has shape {list(shape)}, in {checkpoint.path} it has {list(values.shape)}; "
                f"give the GGUF's own checkpoint"
            )
        found += compare(tensor.name, tensor.rows, values.reshape(-1, shape[-1]), tensor_type)
    return found


def other_types(path: Path, checkpoint: Checkpoint, plan: Plan) -> tuple[tuple[str, str], ...]:
    """TypeChoice.overrides that give the Sherry layers which the file has in other types than SHERRY these types.

    A type that the converter cannot write becomes F32. Embedding and output are left out.
    """
    layers: set[str] = _as_trained(path, checkpoint, plan).recorder.baked - {TOKEN_EMBEDDING, OUTPUT}
    return tuple(
        (f"^{re.escape(tensor.name)}$", _writable(tensor))
        for tensor in open_gguf(path).tensors
        if tensor.name in layers and tensor.type is not SHERRY and has_choice(tensor.name, len(tensor.info.shape))
    )


def _as_trained(path: Path, checkpoint: Checkpoint, plan: Plan) -> Any:
    """Upstream's converter with all tensors of the checkpoint prepared, none of them read yet."""
    llama_cpp.use_pinned_gguf()
    instance = open_model(Job(checkpoint, plan, TypeChoice().of(plan.rule), as_trained=True), path)
    instance.prepare_tensors()
    return instance


def _writable(tensor: FileTensor) -> str:
    if tensor.ternary_type is not None:
        return tensor.ternary_type.outtype
    try:
        return parse_type(tensor.type_name or "")
    except SherryError:
        return "f32"
