"""A written file against its checkpoint: every byte of every tensor is derived a second time, and compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sherry_gguf.convert.model import take_tensors
from sherry_gguf.convert.type_choice import OUTPUT, TOKEN_EMBEDDING
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.scales import rounded_weights
from sherry_gguf.weights.compare import WeightCheck, compare

_PART = 1 << 22  # weights read at a time


@dataclass(frozen=True)
class Verdict:
    """What was compared, and found equal: the tensors that hold Sherry layers exactly, their types, how many others.

    errors: tensor -> |stored - w| / |w|, of layers that are not ternary, and are stored as near as their type can
    calibrated: they hold what calibration chose
    """

    sherry: WeightCheck
    types: Sequence[str]
    other_tensors: int
    errors: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False

    def __str__(self) -> str:
        if not self.sherry.tensors:
            return f"verified: {self.other_tensors} tensors equal; none is SHERRY"
        types = " and ".join(self.types)
        if self.calibrated:
            return (
                f"verified: {self.sherry.tensors} {types} tensors, {self.sherry.weights:,} weights, are bit by bit "
                f"those that calibration chose; {self.other_tensors} other tensors equal the checkpoint's"
            )
        return (
            f"verified: {self.sherry.tensors} {types} tensors, {self.sherry.weights:,} weights, all codes equal the "
            f"checkpoint's, scales off by {self.sherry.max_scale_error:.1e} at most (half an fp16 ulp: 4.9e-04); "
            f"{self.other_tensors} other tensors equal"
        )


def verify(files: Sequence[Path], as_trained: Any, progress: bool = False, calibrated: bool = False) -> Verdict:
    """Compare a model's file, or all its parts, with ``as_trained``, an ``open_model`` of a job with as_trained set.

    The expected tensors come from the checkpoint through upstream's rewriting as float32, their scales not rounded;
    the file's are read back from its bytes. calibrated: all bits are held equal, as the scales are fp16's already.
    Raises SherryError naming the first tensor, row and group that differ.
    """
    import gguf

    as_trained.prepare_tensors()
    recorder, expected = as_trained.recorder, take_tensors(as_trained)
    tensors = [tensor for path in files for tensor in open_gguf(path).tensors]
    names = {tensor.name for tensor in tensors}
    if names != set(expected) or len(names) != len(tensors):
        raise SherryError(
            f"{files[0]}: holds other tensors than the checkpoint gives: {sorted(names ^ set(expected))[:3]}"
        )

    sherry, types = WeightCheck(), set()
    errors: dict[str, float] = {}
    for tensor in tqdm(tensors, desc="Verifying", unit="tensor", disable=not progress):
        values = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        tensor_type = tensor.ternary_type
        if tensor_type is not None and tensor.name in recorder.exact:
            values = values.reshape(-1, values.shape[-1])
            if calibrated and not np.array_equal(tensor_type.dequantize(tensor.rows), values):
                raise SherryError(f"{tensor.place} of the file is not what calibration chose")
            sherry += compare(tensor.name, tensor.rows, values, tensor_type)
            types.add(tensor_type.name)
            if sherry.first_wrong:
                raise SherryError(f"{tensor.header.path}: {sherry.first_wrong} of the file is not what was trained")
            continue
        if tensor.name in recorder.baked and recorder.types.layers is not None:
            errors[tensor.name] = _error(gguf, tensor, values)
        elif tensor.name in recorder.baked - recorder.summed:
            # stored in another type, but with SHERRY's values: each is 0 or a scale, rounded to fp16
            values = rounded_weights(values)
        if tensor.type is None or not np.array_equal(_bytes(gguf, values, tensor.type.type_id), tensor.stored):
            raise SherryError(f"{tensor.name}: the file's {tensor.type_name} bytes are not the checkpoint's")
    return Verdict(sherry, sorted(types), len(tensors) - sherry.tensors, errors, calibrated)


def _error(gguf: Any, tensor: FileTensor, values: Any) -> float:
    """|stored - w| / |w|, Frobenius norms."""
    assert tensor.type is not None
    stored = gguf.quants.dequantize(
        _as_stored(gguf, tensor.rows, tensor.type.type_id), gguf.GGMLQuantizationType(tensor.type.type_id)
    )
    norm = float(np.linalg.norm(values.astype(np.float64)))
    return float(np.linalg.norm(stored.reshape(values.shape).astype(np.float64) - values)) / max(norm, 1e-300)


def require_finite(files: Sequence[Path], exact: Collection[str]) -> None:
    """Raise SherryError for a tensor with a weight that its type cannot hold: an infinity or NaN when it is read back.

    exact: the tensors of Sherry layers, whose scales were checked when they were packed
    """
    import gguf

    for tensor in (tensor for path in files for tensor in open_gguf(path).tensors):
        if tensor.name in exact or tensor.type is None:
            continue
        rows = tensor.stored.reshape(-1, tensor.stored.size // max(1, tensor.info.weights // tensor.info.row))
        step = max(1, _PART // tensor.info.row)
        for start in range(0, len(rows), step):
            with np.errstate(over="ignore", invalid="ignore"):
                values = gguf.quants.dequantize(
                    _as_stored(gguf, rows[start : start + step], tensor.type.type_id),
                    gguf.GGMLQuantizationType(tensor.type.type_id),
                )
            finite = np.isfinite(values)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                way = {TOKEN_EMBEDDING: Way.EMBEDDING_TYPE, OUTPUT: Way.OUTPUT_TYPE}.get(tensor.name, Way.OTHER_TYPE)
                raise SherryError(
                    f"{tensor.name}: weight {column} of row {start + row} is too large for {tensor.type_name}, which "
                    f"would hold {values[row, column]}",
                    way,
                )


def _as_stored(gguf: Any, rows: Any, type_id: int) -> Any:
    """uint8[rows, n] as ``gguf.quants.dequantize`` takes them: float types as such."""
    floats = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    dtype = floats.get(type_id)
    return rows if dtype is None else np.ascontiguousarray(rows).view(dtype)


def _bytes(gguf: Any, values: Any, type_id: int) -> Any:
    """uint8[n] of the values in a type."""
    quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType(type_id))
    return np.ascontiguousarray(quantized).reshape(-1).view(np.uint8)
