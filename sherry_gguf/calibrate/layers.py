"""The walk through a model, decoder layer by decoder layer: statistics of inputs, then codes and scales.

A layer gets the float model's activations, not those of what is quantized before it: every layer is computed once.
In memory are one layer, its statistics and the activations; these are on disk where they are larger than is allowed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from sherry_gguf.calibrate.decoder import Decoder
from sherry_gguf.calibrate.feedback import quantize
from sherry_gguf.calibrate.hessian import Hessian, damped, upper_factor
from sherry_gguf.calibrate.mixed import alternatives, there_and_back
from sherry_gguf.calibrate.refit import refit
from sherry_gguf.calibrate.state import State
from sherry_gguf.calibrate.watch import Matrix, Watch, matrices
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.errors import SherryError, Way, naming

GIB: Final = 1 << 30


@dataclass
class Calibrated:
    """The matrices of a model, quantized; they stay in the state's folder.

    layer_of  name -> its decoder layer, or the place after all for the head
    weights   name -> |w_q - w| / |w|
    outputs   name -> the same of the matrix's outputs on the calibration text
    instead   name -> type -> the same in a stock type, squared, where that was asked for
    notes     what is to be said of channels that are dead or repeated, and of experts that saw few tokens
    """

    state: State
    layer_of: Mapping[str, int]
    weights: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    instead: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def load(self, name: str) -> torch.Tensor:
        """float32[rows, k], as a reader of the file computes them."""
        return self.state.read(self.layer_of[name], name).weights()

    @property
    def losses(self) -> dict[str, float]:
        """The squares of outputs, which ``instead`` has too."""
        return {name: output**2 for name, output in self.outputs.items()}

    def without(self, names: Collection[str]) -> Calibrated:
        """The others."""
        kept = {name: layer for name, layer in self.layer_of.items() if name not in names}
        weights, outputs = ({name: found[name] for name in kept} for found in (self.weights, self.outputs))
        return replace(self, layer_of=kept, weights=weights, outputs=outputs)

    def said(self) -> list[str]:
        """The notes, after what the weights were changed to and by how much."""
        if not self.outputs:
            return self.notes
        errors = sorted(self.outputs.items(), key=lambda item: item[1])
        (_, median), (worst, largest) = errors[len(errors) // 2], errors[-1]
        return [
            f"calibration changed the weights of {len(errors)} matrices on purpose: their outputs on the text differ "
            f"by {median:.1%} in the median (|y_q - y| / |y|), at most by {largest:.1%}, in {worst}",
            *self.notes,
        ]


def calibrate(
    checkpoint: Checkpoint,
    names: Sequence[str],
    windows: torch.Tensor,
    state: State,
    *,
    planes: int,
    memory: float,
    instead: bool = False,
    progress: bool = False,
) -> Calibrated:
    """Quantize matrices of a checkpoint on a text.

    names   of weights [rows, k] of linear layers, k a multiple of 128, all in decoder layers, or the head
    windows int64[windows, length], tokens
    planes  1 or 2
    memory  GiB that activations may take
    instead also say what each matrix would lose in the stock types that it could have (``mixed.py``)

    A layer that ``state`` has finished is only computed. Raises SherryError for activations that are not finite, and
    for a matrix that nothing is multiplied with.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = Decoder(checkpoint, names, device)
    layer_of = {name: place for name in names if (place := decoder.place(name)) is not None}
    if outside := [name for name in names if name not in layer_of]:
        raise SherryError(f"{outside[0]}: is in no decoder layer that transformers computes", Way.LEAVE_OUT)
    bar = tqdm(
        total=sum(_size(checkpoint, name) for name in layer_of),
        initial=sum(_size(checkpoint, name) for name, layer in layer_of.items() if state.finished(layer)),
        desc="Calibrating",
        unit="weight",
        unit_scale=True,
        smoothing=0,  # the mean over all of the walk tells how much time is left
        disable=not progress,
    )
    unfinished = [layer for layer in set(layer_of.values()) if not state.finished(layer)]
    if unfinished:
        with torch.inference_mode(), state.activations() as folder, bar:
            hidden = _activations(len(windows), windows.shape[1], _width(checkpoint), memory, folder)
            decoder.embed(windows, hidden)
            for index in range(max(unfinished) + 1):
                targets = [name for name, layer in layer_of.items() if layer == index]
                prefix = f"{decoder.path}.{index}." if index < len(decoder.layers) else ""
                found = matrices(decoder.load(index), prefix, targets, checkpoint.names)
                watch = Watch(found if index in unfinished else ())
                with watch:
                    _compute(decoder, index, hidden)
                if index in unfinished:
                    _require_reached(found, watch, targets)
                    _quantize_layer(state, index, found, watch.hessians, planes, instead, bar)
                decoder.free(index)
    result = Calibrated(state, layer_of)
    for index in sorted(set(layer_of.values())):
        said = state.found(index)
        result.weights.update(said["weights"])
        result.outputs.update(said["outputs"])
        result.instead.update(said["instead"])
        result.notes += said["notes"]
    return result


def _compute(decoder: Decoder, index: int, hidden: torch.Tensor) -> None:
    """Put all windows through a layer. Raises SherryError for what is no number then."""
    for window in range(len(hidden)):
        out = decoder.forward(index, hidden[window : window + 1].to(decoder.device))
        if not torch.isfinite(out).all():
            raise SherryError(
                f"{decoder.checkpoint.path}: layer {index} of the float model makes NaN or infinities of window "
                f"{window} of the text"
            )
        hidden[window : window + 1] = out


def _size(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint.info(name).shape)


def _width(checkpoint: Checkpoint) -> int:
    text = checkpoint.config.get("text_config") or {}
    return int(checkpoint.config.get("hidden_size") or text["hidden_size"])


def _activations(windows: int, length: int, width: int, memory: float, folder: Path) -> torch.Tensor:
    """float32[windows, length, width], of a file in the folder where that is more than is allowed."""
    size = 4 * windows * length * width
    if size <= memory * GIB:
        return torch.empty(windows, length, width)
    path = folder / "activations"
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and the end of the process later
            os.posix_fallocate(file.fileno(), 0, size)
    return torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r+", shape=(windows, length, width)))


def _require_reached(found: Sequence[Matrix], watch: Watch, targets: Iterable[str]) -> None:
    """Raise SherryError for a matrix that is in no linear layer, or in one that was not used, unless it is an expert's
    of a stack that was."""
    stacks = {found[i].stack for i in watch.hessians}
    reached = {
        name
        for i, matrix in enumerate(found)
        if i in watch.hessians or (matrix.stack is not None and matrix.stack in stacks)
        for name in matrix.rows
    }
    for name in targets:
        if name not in reached:
            raise SherryError(f"{name}: no token of the text passes it in transformers' model", Way.LEAVE_OUT)


def _quantize_layer(
    state: State,
    index: int,
    found: Sequence[Matrix],
    hessians: Mapping[int, Hessian],
    planes: int,
    instead: bool,
    bar: Any,
) -> None:
    said: dict[str, Any] = {"weights": {}, "outputs": {}, "instead": {}, "notes": []}
    result = {}
    for hessian, members in _by_statistics(found, hessians, said["notes"]):
        names = [name for matrix in members for name in matrix.rows]
        with naming(names[0]):
            hessian.require_finite()
        said["notes"] += _notes_on_channels(", ".join(names), hessian)
        parts = [matrix.weights[rows] for matrix in members for rows in matrix.rows.values()]
        with naming(names[0]):
            weights = torch.cat(parts)
            statistics = damped(hessian.sum)
            all_planes = refit(quantize(weights, upper_factor(statistics), planes), weights, statistics)
            all_planes.require_fit()
        start = 0
        for name, part in zip(names, parts, strict=True):
            own = all_planes.rows(slice(start, start + len(part)))
            start += len(part)
            result[name] = own
            change = own.weights() - part
            said["weights"][name] = float(change.norm() / part.norm().clamp_min(1e-30))
            energy = max(_energy(part, hessian.sum), 1e-30)
            said["outputs"][name] = (_energy(change, hessian.sum) / energy) ** 0.5
            if instead and members[0].stack is None:  # experts are one tensor of the file
                said["instead"][name] = {
                    type_name: _energy(there_and_back(part, type_name) - part, hessian.sum) / energy
                    for type_name in alternatives(part.shape[-1])
                }
            bar.update(part.numel())
    state.write(index, result, said)


def _notes_on_channels(names: str, hessian: Hessian) -> list[str]:
    """What of the text makes the statistics singular, and what was done."""
    notes = []
    if dead := hessian.dead:
        notes.append(
            f"{names}: {len(dead)} input channels are 0 in all of the text, the first {dead[0]}; their weights were "
            f"rounded"
        )
    if repeated := hessian.repeated:
        channel, earlier = repeated[0]
        notes.append(
            f"{names}: {len(repeated)} input channels are multiples of others in all of the text, the first {channel} "
            f"of {earlier}; what keeps them apart is the 1% of its mean diagonal that is added to every H"
        )
    return notes


def _energy(weights: torch.Tensor, hessian: torch.Tensor) -> float:
    """The squared norm of the outputs on the calibration text."""
    return max(0.0, float(((weights @ hessian) * weights).sum(dtype=torch.float64)))


def _by_statistics(
    found: Sequence[Matrix], hessians: Mapping[int, Hessian], notes: list[str]
) -> Iterable[tuple[Hessian, list[Matrix]]]:
    """The statistics of a layer, each with the matrices that it is for.

    An expert that saw fewer tokens than its rows are long gets those of all experts of its stack.
    """
    shared: dict[str, Hessian] = {}
    members: dict[int, tuple[Hessian, list[Matrix]]] = {}
    for i, matrix in enumerate(found):
        hessian = hessians.get(i)
        k = matrix.weights.shape[-1]
        tokens = 0 if hessian is None else hessian.tokens
        if matrix.stack is not None and tokens < k:
            if matrix.stack not in shared:
                shared[matrix.stack] = Hessian(k, matrix.weights.device)
                for other, seen in hessians.items():
                    if found[other].stack == matrix.stack:
                        shared[matrix.stack].merge(seen)
            hessian = shared[matrix.stack]
            notes.append(
                f"{', '.join(matrix.rows)}: {tokens} tokens of the text came to this expert, fewer than the {k} "
                f"weights of a row; it was quantized by the statistics of all {hessian.tokens} that came to its layer's"
            )
        assert hessian is not None
        members.setdefault(id(hessian), (hessian, []))[1].append(matrix)
    return members.values()
