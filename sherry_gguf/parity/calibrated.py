"""The weights of a calibrated file by the names of its checkpoint, so that PyTorch can run them.

Upstream's converter permutes and stacks rows. Which row of the file is which of the checkpoint, it says itself: it is
given matrices that hold, instead of weights, the number of their layer, that of the row, and those of their columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert.calibrated import KEY, calibrated_plan
from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.type_choice import OUTPUT, TypeChoice
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.tensor import FileTensor
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.sherry_2p import SHERRY_2P

F32 = npt.NDArray[np.float32]
_MARKS = 2  # columns of a marked matrix that have the numbers of layer and row


@dataclass(frozen=True)
class Chosen:
    """What calibration chose for a model.

    plan     of the checkpoint, in which no layer is left to be read as Sherry
    weights  name of the checkpoint -> float32[rows, k], as the file's blocks give them back
    changes  name -> |w_q - w| / |w|
    """

    plan: Plan
    weights: Mapping[str, torch.Tensor]
    changes: Mapping[str, float]


def is_calibrated(path: Path) -> bool:
    """Whether the weights of a file were chosen on a text."""
    return open_gguf(path).value(f"{KEY}.text_sha256") is not None


def read_chosen(path: Path, checkpoint: Checkpoint, source: Source) -> Chosen:
    """The calibrated layers of a file, those in a stock type too. Memory: these in float32, and a few tensors.

    Raises SherryError for a file of another model: of other tensors, or whose weights are not near the checkpoint's;
    and for one that requantize has given other types.
    """
    llama_cpp.use_pinned_gguf()
    import gguf

    written = open_gguf(path).tensors
    planes = [t for t in written if t.ternary_type in (SHERRY, SHERRY_2P)]
    if not planes:
        raise SherryError(
            f"{path}: was calibrated, and has no tensor of SHERRY or SHERRY_2P now; compare the file that convert wrote"
        )
    plan = calibrated_plan(checkpoint, source, SHERRY_2P, any(tensor.name == OUTPUT for tensor in planes))
    names = list(plan.layers)
    marks: dict[str, Callable[[], torch.Tensor]] = {
        name: partial(_marked, i, checkpoint.info(name).shape) for i, name in enumerate(names)
    }
    instance: Any = open_model(Job(checkpoint, plan, TypeChoice(), as_trained=True, calibrated=marks), path)
    instance.prepare_tensors()
    expected = take_tensors(instance)
    found: dict[str, torch.Tensor] = {}
    for tensor in planes:
        if tensor.name not in instance.recorder.baked:
            raise SherryError(f"{tensor.place} is no tensor of {checkpoint.path}; give the GGUF's own checkpoint")
    quantized = [t for t in written if t.name in instance.recorder.baked and t.type is not None and t.type.block > 1]
    for tensor in quantized:  # some may have a stock type
        numbers = gguf.LazyNumpyTensor.to_eager(expected.pop(tensor.name).tensor)
        _sort(tensor, numbers, names, checkpoint, found)
    changes = {name: _change(weights, checkpoint.load(name).to(torch.float32)) for name, weights in found.items()}
    for name, change in changes.items():
        if not change < 1:
            raise SherryError(
                f"{path}: its weights of {name} are not near those of {checkpoint.path}; give the GGUF's own checkpoint"
            )
    return Chosen(replace(plan, layers={}), found, changes)


def _marked(layer: int, shape: tuple[int, ...]) -> torch.Tensor:
    """float32[rows, k]: the numbers of layer, row, and of the columns from the third on."""
    marked = torch.arange(shape[1], dtype=torch.float32).repeat(shape[0], 1)
    marked[:, 0] = layer
    marked[:, 1] = torch.arange(shape[0])
    return marked


def _sort(
    tensor: FileTensor, numbers: F32, names: list[str], checkpoint: Checkpoint, found: dict[str, torch.Tensor]
) -> None:
    """Put the rows of a tensor of the file where they belong; a layer may have them in several tensors."""
    shape = tuple(reversed(tensor.info.shape))
    k = shape[-1]
    if numbers.shape != shape:
        raise SherryError(
            f"{tensor.place} has shape {list(shape)}, in {checkpoint.path} it has {list(numbers.shape)}; "
            f"give the GGUF's own checkpoint"
        )
    rows = numbers.reshape(-1, k)
    if not (rows[:, _MARKS:] == np.arange(_MARKS, k)).all():
        raise SherryError(f"{tensor.place}: llama.cpp's converter changes more of it than the order of its rows")
    values = torch.from_numpy(_weights(tensor))
    layers, places = torch.from_numpy(rows[:, 0].astype(np.int64)), torch.from_numpy(rows[:, 1].astype(np.int64))
    for layer in layers.unique().tolist():
        name, own = names[layer], layers == layer
        if name not in found:
            found[name] = checkpoint.load(name).to(torch.float32, copy=True)
        found[name][places[own]] = values[own]


def _weights(tensor: FileTensor) -> F32:
    """float32[rows, k]"""
    if tensor.ternary_type is not None:
        return np.concatenate([planes.weights for planes in tensor.chunks()])
    import gguf

    assert tensor.type is not None
    weights: F32 = gguf.quants.dequantize(tensor.rows, gguf.GGMLQuantizationType(tensor.type.type_id))
    return weights


def _change(weights: torch.Tensor, stored: torch.Tensor) -> float:
    return float((weights - stored).norm() / stored.norm().clamp_min(1e-30))
