"""Which weights of a checkpoint are Sherry layers, and how each is brought onto the grid. Nothing is written here."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Literal

import torch

from sherry_gguf import stq1_0
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.format import BLOCK
from sherry_gguf.grid import Grid, Kind, detect
from sherry_gguf.groups import STRIDE, Groups
from sherry_gguf.quantize import Granularity

_SAMPLE_ROWS = 64

DEFAULT_GROUP_SIZE: Final[dict[Groups, int]] = {"consecutive": BLOCK, "stride16": stq1_0.BLOCK}

Source = Literal["latent", "baked", "lossy"]


@dataclass(frozen=True)
class Layer:
    """How one layer reaches the grid.

    latent  the trainer's float weights: quantized as the trained forward does, which loses nothing
    baked   on the grid already: codes and scales are read off
    lossy   a plain model's weights, which the user allowed to be changed

    span    the weights of a row that share a scale and would lie in one block; 128 where SHERRY's blocks fit
    groups  of which weights; a baked layer's may fit both kinds

    Those of baked layers are read off a sample of rows.
    """

    source: Source
    span: int
    groups: tuple[Groups, ...]


@dataclass(frozen=True)
class Plan:
    """layers: weight name -> Layer. granularity: of the latent and lossy ones."""

    layers: dict[str, Layer]
    granularity: Granularity

    def summary(self) -> str:
        sources = [layer.source for layer in self.layers.values()]
        count = {source: sources.count(source) for source in ("latent", "baked", "lossy")}
        parts = [f"{n} {source}" for source, n in count.items() if n]
        scales = "" if count["baked"] == len(self.layers) else f", scales {self.granularity}"
        apart = sum("consecutive" not in layer.groups for layer in self.layers.values())
        stride = f", {apart} of them with groups of weights {STRIDE} apart" if apart else ""
        return f"{' and '.join(parts)} Sherry layers{scales}{stride}"


def make_plan(
    checkpoint: Checkpoint,
    granularity: Granularity | None = None,
    sherry_layers: str | None = None,
    allow_lossy: bool = False,
    groups: Groups | None = None,
) -> Plan:
    """Decide for every Sherry layer how it is read.

    granularity: what the user declares; it wins over config.json, and tells that latent weights are Sherry's.
    allow_lossy: quantize what would be refused; what is Sherry's is still read as it was trained.
    groups: of latent weights, if not as config.json has it; those of baked ones are seen, and refused if others.
    Raises SherryError for a checkpoint that is not Sherry, saying what was seen and what would fit.
    """
    sherry_layers = checkpoint.declared_layers() if sherry_layers is None else sherry_layers
    names = [name for name in checkpoint.names if re.search(sherry_layers, name)]
    if not names:
        raise SherryError(
            f"{checkpoint.path}: no weight's name matches {sherry_layers}; "
            f"name the quantized linear layers of this architecture (--sherry-layers REGEX)"
        )
    grids = {name: _grid(checkpoint, name) for name in names}
    declared = granularity or _declared(checkpoint, allow_lossy)
    # Latents saved with their zeros applied have magnitudes of their own; quantizing them refuses any other sparsity.
    latents = (Kind.FLOAT,) if declared is None else (Kind.FLOAT, Kind.SPARSE)
    foreign = [name for name, grid in grids.items() if grid.kind not in (*latents, Kind.SHERRY)]
    if foreign and not allow_lossy:
        raise SherryError(_foreign(checkpoint, grids, foreign))
    floats = [name for name, grid in grids.items() if grid.kind is Kind.FLOAT]
    if floats and declared is None and not allow_lossy:
        raise SherryError(_undeclared(checkpoint, floats, len(names)))

    contradicting = [n for n, g in grids.items() if groups is not None and g.groups and groups not in g.groups]
    if contradicting:
        raise SherryError(
            f"{checkpoint.path}: {len(contradicting)} of {len(names)} layers, the first {contradicting[0]}, are baked "
            f"with {grids[contradicting[0]].groups[0]} groups; --grid is for latent weights"
        )

    groups = groups or checkpoint.declared_groups()
    granularity = declared or Granularity("per_group", DEFAULT_GROUP_SIZE[groups])
    only_declared: tuple[Groups, ...] = (groups,)
    layers: dict[str, Layer] = {}
    source: Source
    for name, grid in grids.items():
        rows, row_length = checkpoint.info(name).shape[-2:]
        scales, kinds = granularity, only_declared
        if grid.kind is Kind.SHERRY:
            source, scales, kinds = "baked", grid.granularity or granularity, grid.groups
        elif grid.kind in latents and declared is not None:
            source = "latent"
        else:
            source = "lossy"
        with naming(name):
            run = scales.run_length(rows, row_length, kinds[0])
        layers[name] = Layer(source, math.gcd(run, row_length, BLOCK), kinds)
    return Plan(layers, granularity)


def _declared(checkpoint: Checkpoint, allow_lossy: bool) -> Granularity | None:
    try:
        return checkpoint.declared_granularity()
    except SherryError:
        if allow_lossy:
            return None  # another method's weights are a plain model's here
        raise


def _grid(checkpoint: Checkpoint, name: str) -> Grid:
    with naming(name):
        shape = checkpoint.info(name).shape
        if len(shape) not in (2, 3):
            raise SherryError(f"has shape {list(shape)}, no linear layer's; exclude it (--sherry-layers REGEX)")
        sample = checkpoint.head(name, _SAMPLE_ROWS if len(shape) == 2 else 1)
        return detect(sample.reshape(-1, shape[-1])[:_SAMPLE_ROWS].to(torch.float32).numpy())


_FITS = {
    Kind.TERNARY: "TQ2_0 or TQ1_0 hold such weights (llama.cpp's convert_hf_to_gguf.py --outtype tq2_0)",
    Kind.SPARSE: "if these are Sherry's latents with their zeros applied, declare it (--granularity)",
}


def _foreign(checkpoint: Checkpoint, grids: dict[str, Grid], names: list[str]) -> str:
    by_kind: dict[Kind, list[str]] = defaultdict(list)
    for name in names:
        by_kind[grids[name].kind].append(name)
    kind, members = max(by_kind.items(), key=lambda item: len(item[1]))
    grid = grids[members[0]]
    scales = f", magnitudes {grid.granularity}" if grid.granularity else ""
    return (
        f"{checkpoint.path}: {len(members)} of {len(grids)} layers, the first {members[0]}, are {kind.value}: "
        f"{grid.zeros:.1%} zeros{scales}; {_FITS[kind]}; --allow-lossy forces them onto Sherry's grid and changes them"
    )


def _undeclared(checkpoint: Checkpoint, floats: list[str], total: int) -> str:
    if len(floats) == total:
        return (
            f"{checkpoint.path}: all {total} layers hold {Kind.FLOAT.value}, and config.json does not say that they "
            f"were trained with Sherry; if they were, say how (--granularity per_group --group-size 128; "
            f"for the groups of STQ1_0 --granularity per_group --grid stride16); "
            f"--allow-lossy quantizes a plain model, and changes it"
        )
    return (
        f"{checkpoint.path}: {len(floats)} of {total} layers, the first {floats[0]}, hold {Kind.FLOAT.value} beside "
        f"baked Sherry layers; leave them as they are (--sherry-layers REGEX names the others), "
        f"or declare them Sherry's latents (--granularity)"
    )
