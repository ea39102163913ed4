"""The SHERRY tensors of a GGUF against the checkpoint, weight by weight; no runtime and no tolerance."""

from __future__ import annotations

from pathlib import Path

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.types import TypeChoice
from sherry_gguf.errors import SherryError
from sherry_gguf.format import TYPE_NAME
from sherry_gguf.reader import open_gguf
from sherry_gguf.weight_check import WeightCheck, compare


def check(file: Path, checkpoint: Checkpoint, plan: Plan) -> WeightCheck:
    """Compare every SHERRY tensor of ``file``.

    What is expected comes from the checkpoint through upstream's own rewriting (it permutes and stacks rows), in
    float32 with alpha as trained. Memory: a few tensors. Raises SherryError for a file of another model.
    """
    llama_cpp.use_pinned_gguf()
    import gguf

    as_trained = open_model(Job(checkpoint, plan, TypeChoice(), as_trained=True), file)
    as_trained.prepare_tensors()
    expected = take_tensors(as_trained)
    found = WeightCheck()
    for tensor in open_gguf(file).tensors:
        if tensor.tensor_type.name != TYPE_NAME:
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
        found += compare(tensor.name, blocks, values.reshape(-1, shape[-1]))
    return found
