"""A written file against its checkpoint: every byte of every tensor is derived a second time, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sherry_gguf.blocks import grid_codes, round_scales, unpack
from sherry_gguf.errors import SherryError
from sherry_gguf.format import BLOCK, TYPE_NAME
from sherry_gguf.reader import open_gguf

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Verdict:
    """What was compared: SHERRY tensors, their weights, all other tensors; and the largest relative scale error."""

    sherry_tensors: int
    sherry_weights: int
    other_tensors: int
    scale_error: float

    def __str__(self) -> str:
        return (
            f"verified: {self.sherry_tensors} SHERRY tensors, {self.sherry_weights:,} weights, all codes equal the "
            f"checkpoint's, scales off by {self.scale_error:.1e} at most (half an fp16 ulp: 4.9e-04); "
            f"{self.other_tensors} other tensors equal"
        )


def verify(file: Path, as_trained: Any, progress: bool = False) -> Verdict:
    """Compare ``file`` with ``as_trained``, an ``open_model`` of a job with as_trained set.

    The expected tensors come from the checkpoint through upstream's rewriting as float32, their scales not rounded;
    the file's are read back from its bytes. Raises SherryError naming the first tensor, row and group that differ.
    """
    import gguf

    as_trained.prepare_tensors()
    (expected,) = as_trained.gguf_writer.tensors
    as_trained.gguf_writer.tensors = []
    tensors = open_gguf(file).tensors
    names = {tensor.name for tensor in tensors}
    if names != set(expected):
        raise SherryError(f"{file}: holds other tensors than the checkpoint gives: {sorted(names ^ set(expected))[:3]}")

    sherry = weights = 0
    scale_error = 0.0
    for tensor in tqdm(tensors, desc="Verifying", unit="tensor", disable=not progress):
        # taken out, so that a tensor's weights are freed before the next one's are read
        values = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        if tensor.tensor_type.name == TYPE_NAME:
            sherry += 1
            weights += values.size
            rows = tensor.data.reshape(-1, tensor.data.shape[-1])
            error = _compare_blocks(tensor.name, rows, values.reshape(-1, values.shape[-1]))
            scale_error = max(scale_error, error)
            continue
        if tensor.name in as_trained.on_grid:
            # stored in another type, but with SHERRY's values: each is 0 or a scale, rounded to fp16
            values = values.astype(np.float16).astype(np.float32)
        if not np.array_equal(gguf.quants.quantize(values, tensor.tensor_type), tensor.data):
            raise SherryError(f"{tensor.name}: the file's {tensor.tensor_type.name} bytes are not the checkpoint's")
    return Verdict(sherry, weights, len(tensors) - sherry, scale_error)


def _compare_blocks(name: str, rows: U8, expected: F32) -> float:
    """blocks uint8[rows, bytes] against weights float32[rows, k] -> the largest relative error of a scale."""
    codes, scales = unpack(rows)
    if not np.array_equal(codes, grid_codes(expected)):
        row, group = np.argwhere(codes != grid_codes(expected))[0]
        raise SherryError(f"{name}: row {row}, group {group} of the file has another code than the checkpoint")
    alpha = np.abs(expected).reshape(rows.shape[0], -1, BLOCK).max(axis=-1)
    if not np.array_equal(scales, round_scales(alpha).astype(np.float32)):
        row, block = np.argwhere(scales != round_scales(alpha))[0]
        raise SherryError(f"{name}: row {row}, block {block} of the file is off by more than half an fp16 ulp")
    return float(np.max(np.abs(scales - alpha) / np.where(alpha == 0, 1, alpha), initial=0.0))
