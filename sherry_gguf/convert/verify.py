"""A written file against its checkpoint: every byte of every tensor is derived a second time, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sherry_gguf.convert.model import take_tensors
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.formats.scales import rounded_weights
from sherry_gguf.weights.compare import WeightCheck, compare


@dataclass(frozen=True)
class Verdict:
    """What was compared, and found equal: the tensors that hold Sherry layers exactly, their types, how many others."""

    sherry: WeightCheck
    types: Sequence[str]
    other_tensors: int

    def __str__(self) -> str:
        if not self.sherry.tensors:
            return f"verified: {self.other_tensors} tensors equal; none is SHERRY"
        types = " and ".join(self.types)
        return (
            f"verified: {self.sherry.tensors} {types} tensors, {self.sherry.weights:,} weights, all codes equal the "
            f"checkpoint's, scales off by {self.sherry.max_scale_error:.1e} at most (half an fp16 ulp: 4.9e-04); "
            f"{self.other_tensors} other tensors equal"
        )


def verify(path: Path, as_trained: Any, progress: bool = False) -> Verdict:
    """Compare the file with ``as_trained``, an ``open_model`` of a job with as_trained set.

    The expected tensors come from the checkpoint through upstream's rewriting as float32, their scales not rounded;
    the file's are read back from its bytes. Raises SherryError naming the first tensor, row and group that differ.
    """
    import gguf

    as_trained.prepare_tensors()
    recorder, expected = as_trained.recorder, take_tensors(as_trained)
    tensors = open_gguf(path).tensors
    names = {tensor.name for tensor in tensors}
    if names != set(expected):
        raise SherryError(f"{path}: holds other tensors than the checkpoint gives: {sorted(names ^ set(expected))[:3]}")

    sherry, types = WeightCheck(), set()
    for tensor in tqdm(tensors, desc="Verifying", unit="tensor", disable=not progress):
        values = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        tensor_type = tensor.ternary_type
        if tensor_type is not None and tensor.name in recorder.exact:
            sherry += compare(tensor.name, tensor.rows, values.reshape(-1, values.shape[-1]), tensor_type)
            types.add(tensor_type.name)
            if sherry.first_wrong:
                raise SherryError(f"{path}: {sherry.first_wrong} of the file is not what was trained")
            continue
        if tensor.name in recorder.baked:
            # stored in another type, but with SHERRY's values: each is 0 or a scale, rounded to fp16
            values = rounded_weights(values)
        if tensor.type is None or not np.array_equal(_bytes(gguf, values, tensor.type.type_id), tensor.stored):
            raise SherryError(f"{tensor.name}: the file's {tensor.type_name} bytes are not the checkpoint's")
    return Verdict(sherry, sorted(types), len(tensors) - sherry.tensors)


def _bytes(gguf: Any, values: Any, type_id: int) -> Any:
    """uint8[n] of the values in a type."""
    quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType(type_id))
    return np.ascontiguousarray(quantized).reshape(-1).view(np.uint8)
