"""Which weights of a checkpoint are Sherry layers, and how each is read. Nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.checkpoint.declared import matching
from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.formats.groups import STRIDE, Grid
from sherry_gguf.weights import refusal
from sherry_gguf.weights.detect import Family, Look, detect
from sherry_gguf.weights.granularity import DEFAULT_GROUP_SIZE, Granularity
from sherry_gguf.weights.quantize import PIECE

_SAMPLE_ROWS = 64
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Reading = Literal["latent", "baked", "lossy", "calibrated"]


@dataclass(frozen=True)
class Layer:
    """How one layer is read.

    latent  the trainer's float weights: quantized as the trained forward does, which loses nothing
    baked   ternary already: codes and scales are read off
    lossy   a plain model's weights, which the user allowed to be changed

    calibrated  a plain model's, that become what is chosen on a text (``convert/calibrated.py``)

    piece  the weights of a row that share a scale and would lie in one block; 128 where SHERRY's blocks fit
    grids  of which weights its groups are; a baked layer may fit both grids

    Those of baked layers are read off a sample of rows.
    """

    source: Reading
    piece: int
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Plan:
    """layers: weight name -> Layer. granularity: of the latent and lossy ones.

    moved: tensor name -> dimensions whose channels are put in another order once the tensor is baked
    stock: names of linear layers beside a calibrated model's that get a stock type where none is chosen
    """

    layers: dict[str, Layer]
    granularity: Granularity
    moved: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stock: frozenset[str] = frozenset()

    @property
    def is_calibrated(self) -> bool:
        return any(layer.source == "calibrated" for layer in self.layers.values())

    def summary(self) -> str:
        sources = [layer.source for layer in self.layers.values()]
        count = {source: sources.count(source) for source in get_args(Reading)}
        parts = [f"{n} {source}" for source, n in count.items() if n]
        scales = "" if count["baked"] == len(self.layers) else f", scales {self.granularity}"
        apart = sum("consecutive" not in layer.grids for layer in self.layers.values())
        stride = f", {apart} of them with groups of weights {STRIDE} apart" if apart else ""
        return f"{' and '.join(parts)} Sherry layers{scales}{stride}"


def make_plan(checkpoint: Checkpoint, source: Source | None = None) -> Plan:
    """Decide for every Sherry layer how it is read. source: what the checkpoint was opened from, if it says more.

    A granularity that the user declares wins over config.json, and tells that latent weights are Sherry's. A lossy
    conversion quantizes what would be refused; what is Sherry's is still read as it was trained.
    Raises SherryError for a checkpoint that is not Sherry, saying what was seen and what would fit.
    """
    source = source or Source(checkpoint.path)
    looks = look_at_layers(checkpoint, source)
    declared = source.granularity or _declared(checkpoint, source.allow_lossy)
    if not source.allow_lossy:
        _require_sherry(checkpoint, looks, declared)
    grid = source.grid or checkpoint.declared_grid()
    _require_grid(checkpoint, looks, source.grid)

    granularity = declared or Granularity("per_group", DEFAULT_GROUP_SIZE[grid])
    layers: dict[str, Layer] = {}
    for name, look in looks.items():
        rows, row_length = checkpoint.info(name).shape[-2:]
        reading: Reading
        if look.family is Family.SHERRY:
            reading, scales, grids = "baked", look.granularity or granularity, look.grids
        else:
            reading = "latent" if look.family in _latents(declared) and declared is not None else "lossy"
            scales, grids = granularity, (grid,)
        with naming(name):
            run_length = scales.run_length(rows, row_length, grids[0])
        layers[name] = Layer(reading, math.gcd(run_length, row_length, PIECE), grids)
    return Plan(layers, granularity)


def look_at_layers(checkpoint: Checkpoint, source: Source) -> dict[str, Look]:
    """What the weights of each linear layer look like, by name; SherryError where there are none."""
    layers = checkpoint.declared_layers() if source.sherry_layers is None else source.sherry_layers
    names = matching(layers, checkpoint.names)
    if not names:
        raise SherryError(f"{checkpoint.path}: no weight's name matches {layers}", Way.NAME_LAYERS)
    return {name: _look(checkpoint, name) for name in names}


def _look(checkpoint: Checkpoint, name: str) -> Look:
    with naming(name):
        shape = checkpoint.info(name).shape
        if len(shape) not in (2, 3):
            raise SherryError(f"has shape {list(shape)}, no linear layer's", Way.LEAVE_OUT)
        if (dtype := checkpoint.info(name).dtype) not in _FLOATS:
            raise SherryError(f"has dtype {str(dtype).removeprefix('torch.')}, no trained weights'", Way.LEAVE_OUT)
        return detect(_sample(checkpoint, name, shape).to(torch.float32).numpy())


def _sample(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Some rows of a matrix, or of a stack of them, the first that are not all zeros: zeros say nothing of the rest."""
    head = checkpoint.head(name, _SAMPLE_ROWS if len(shape) == 2 else 1).reshape(-1, shape[-1])[:_SAMPLE_ROWS]
    if head.any(dim=1).all():
        return head
    found = head[:0]
    for rows in checkpoint.load(name).reshape(-1, shape[-1]).split(16 * _SAMPLE_ROWS):
        found = torch.cat([found, rows[rows.any(dim=1)]])[:_SAMPLE_ROWS]
        if len(found) == _SAMPLE_ROWS:
            break
    return found if len(found) else head


def _declared(checkpoint: Checkpoint, allow_lossy: bool) -> Granularity | None:
    try:
        return checkpoint.declared_granularity()
    except SherryError:
        if allow_lossy:
            return None  # another method's weights are a plain model's here
        raise


def _latents(declared: Granularity | None) -> tuple[Family, ...]:
    """The families that latents can have.

    Latents saved with their zeros applied have magnitudes of their own; quantizing them refuses any other sparsity.
    """
    return (Family.FLOAT,) if declared is None else (Family.FLOAT, Family.SPARSE)


def _require_sherry(checkpoint: Checkpoint, looks: Mapping[str, Look], declared: Granularity | None) -> None:
    where = str(checkpoint.path)
    foreign = [name for name, look in looks.items() if look.family not in (*_latents(declared), Family.SHERRY)]
    if foreign:
        raise refusal.foreign_weights(where, looks, foreign)
    floats = [name for name, look in looks.items() if look.family is Family.FLOAT]
    if floats and declared is None:
        raise refusal.undeclared(where, floats, len(looks))


def _require_grid(checkpoint: Checkpoint, looks: Mapping[str, Look], grid: Grid | None) -> None:
    """Raise SherryError if the user names a grid that baked layers do not have."""
    others = [name for name, look in looks.items() if grid is not None and look.grids and grid not in look.grids]
    if others:
        raise SherryError(
            f"{checkpoint.path}: {len(others)} of {len(looks)} layers, the first {others[0]}, are baked "
            f"with {looks[others[0]].grids[0]} groups",
            Way.SEEN_GRID,
        )
