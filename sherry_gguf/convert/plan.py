"""Which weights of a checkpoint are Sherry layers, and how each is read. Nothing is written here.

A checkpoint of dense ternary weights, which has no Sherry layers, is read by the ``Rule`` of its method instead. Its
layers then go the same way: they are baked, and a type holds them exactly or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.checkpoint.declared import architecture, matching
from sherry_gguf.convert.settings import require_graph
from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.formats.groups import STRIDE, Grid
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.weights import refusal
from sherry_gguf.weights.detect import Family, Look, detect
from sherry_gguf.weights.granularity import DEFAULT_GROUP_SIZE, Granularity
from sherry_gguf.weights.quantize import PIECE
from sherry_gguf.weights.ternary import Rule

_SAMPLE_ROWS = 64
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Reading = Literal["latent", "baked", "two-plane", "rounded", "lossy", "calibrated"]
_BIASED = "LlamaForCausalLM"  # llama.cpp has a place for the bias of each linear layer of this architecture


@dataclass(frozen=True)
class Layer:
    """How one layer is read.

    latent  the trainer's float weights: quantized as the trained forward does, which loses nothing
    baked   ternary already: codes and scales are read off
    two-plane  the sum of two such planes already: taken as it is
    rounded  ternary but for rounding, as a trainer saves w + (q - w) for q: its scales are restored
    lossy   a plain model's weights, which the user allowed to be changed

    calibrated  a plain model's, that become what is chosen on a text (``convert/calibrated.py``)

    piece  the weights of a row that share a scale and would lie in one block; 128 where SHERRY's blocks fit
    grids  of which weights its groups are; a baked layer may fit both grids, a dense ternary one has none
    rule   of a dense ternary layer

    Those of baked layers are read off a sample of rows.
    """

    source: Reading
    piece: int
    grids: tuple[Grid, ...]
    rule: Rule | None = None


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

    @property
    def rule(self) -> Rule | None:
        """How latents of all layers become ternary, where these are dense ternary; None where they are Sherry's."""
        rules = [layer.rule for layer in self.layers.values() if layer.rule is not None]
        return next((rule for rule in rules if rule.method != "ternary"), rules[0] if rules else None)

    def summary(self) -> str:
        if self.rule is not None:
            return self._dense_summary(self.rule)
        sources = [layer.source for layer in self.layers.values()]
        count = {source: sources.count(source) for source in get_args(Reading)}
        parts = [f"{n} {source}" for source, n in count.items() if n]
        scales = "" if count["baked"] + count["two-plane"] == len(self.layers) else f", scales {self.granularity}"
        apart = sum("consecutive" not in layer.grids for layer in self.layers.values())
        stride = f", {apart} of them with groups of weights {STRIDE} apart" if apart else ""
        return f"{' and '.join(parts)} Sherry layers{scales}{stride}"

    def _dense_summary(self, rule: Rule) -> str:
        sources = [layer.source for layer in self.layers.values()]
        parts = {
            "latent": f"latents of {rule}",
            "baked": "dense ternary already",
            "rounded": f"{rule} but for rounding",
        }
        said = [f"{sources.count(source)} {what}" for source, what in parts.items() if source in sources]
        what = "complex layers, folded" if rule.is_folded else "dense ternary layers"
        return f"{what}: {' and '.join(said)}"


def make_plan(checkpoint: Checkpoint, source: Source | None = None) -> Plan:
    """Decide for every Sherry layer how it is read. source: what the checkpoint was opened from, if it says more.

    A granularity that the user declares wins over config.json, and tells that latent weights are Sherry's. A lossy
    conversion quantizes what would be refused; what is Sherry's is still read as it was trained.
    Raises SherryError for a checkpoint that is not Sherry, saying what was seen and what would fit.
    """
    source = source or Source(checkpoint.path)
    require_graph(checkpoint.config, checkpoint.path)
    looks = look_at_layers(checkpoint, source)
    rule = None if source.allow_lossy and source.method is None else _dense_rule(checkpoint, looks, source)
    if checkpoint.gains and (rule is None or not rule.has_bias or rule.dead_gain is not None):
        raise SherryError(
            f"{checkpoint.path}: {checkpoint.gains[0]} belongs to Tequila's third version (ultraquantv3), "
            f"and config.json does not name that"
        )
    if rule is not None:
        return _dense_plan(checkpoint, looks, rule)
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
        elif look.family is Family.TWO_PLANES:
            reading, scales, grids = "two-plane", Granularity("per_group", SHERRY_2P.block), ("consecutive",)
        else:
            reading = "latent" if look.family in _latents(declared) and declared is not None else "lossy"
            scales, grids = granularity, (grid,)
        with naming(name):
            run_length = scales.run_length(rows, row_length, grids[0])
        layers[name] = Layer(reading, math.gcd(run_length, row_length, PIECE), grids)
    return Plan(layers, granularity)


def _dense_rule(checkpoint: Checkpoint, looks: Mapping[str, Look], source: Source) -> Rule | None:
    """How the layers become dense ternary weights: as the user or the checkpoint says, or as they are seen to be.

    None for a checkpoint that is, or should be, Sherry's. What is seen wins over what the checkpoint says.
    """
    families = {look.family for look in looks.values() if look.zeros < 1}
    if source.method is not None:
        return Rule(source.method, source.granularity or Granularity())
    if Family.SHERRY in families:
        return None
    if (declared := checkpoint.declared_rule()) is not None:
        return replace(declared, granularity=source.granularity or declared.granularity)
    if source.granularity or families != {Family.TERNARY} or _declared(checkpoint, allow_lossy=False):
        return None
    return Rule("ternary")


def _dense_plan(checkpoint: Checkpoint, looks: Mapping[str, Look], rule: Rule) -> Plan:
    readings: dict[Family, Reading] = {} if rule.is_folded else {Family.TERNARY: "baked"}
    if rule.method != "ternary":
        readings[Family.FLOAT] = "latent"
    if rule.method in ("absmean", "twn"):
        readings[Family.ROUNDED] = "rounded"
        if any(look.family is Family.ROUNDED for look in looks.values()):
            readings[Family.TERNARY] = "rounded"  # it was saved by the same code, and little of it was moved
    foreign = [name for name, look in looks.items() if look.zeros < 1 and look.family not in readings]
    if foreign:
        raise refusal.foreign_weights(str(checkpoint.path), looks, foreign)
    if rule.has_bias:
        _require_biases(checkpoint, looks)
    layers = {}
    for name, look in looks.items():
        reading = readings.get(look.family, "baked")
        rows, row_length = checkpoint.info(name).shape[-2:]
        with naming(name):
            if reading != "baked" and not rule.is_folded:
                rule.granularity.run_length(rows, row_length)
            if rule.has_bias and rule.dead_gain is None and checkpoint.dead_gains(name) is None:
                raise SherryError("has no gains of dead weights beside it (Lambada); download the checkpoint again")
        layers[name] = Layer(reading, math.gcd(row_length, PIECE), (), Rule("ternary") if reading == "baked" else rule)
    return Plan(layers, rule.granularity)


def _require_biases(checkpoint: Checkpoint, looks: Mapping[str, Look]) -> None:
    """Raise SherryError where Tequila's bias cannot be merged: dead weights are gone, or there is no place for it."""
    baked = [name for name, look in looks.items() if look.family is not Family.FLOAT]
    if baked:
        raise SherryError(
            f"{checkpoint.path}: {len(baked)} of {len(looks)} layers, the first {baked[0]}, are no latents: "
            f"Tequila's dead weights, which make a bias, are gone"
        )
    if (found := architecture(checkpoint.config)) != _BIASED:
        raise SherryError(
            f"{checkpoint.path}: Tequila adds a bias to each linear layer, for which llama.cpp has a place in "
            f"{_BIASED}, not in {found}"
        )


def look_at_layers(checkpoint: Checkpoint, source: Source) -> dict[str, Look]:
    """What each layer looks like, by some of its rows. Raises SherryError where there are none, or one is no matrix."""
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
    if (head != 0).any(dim=1).all():
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
    known = (*_latents(declared), Family.SHERRY, Family.TWO_PLANES)
    foreign = [name for name, look in looks.items() if look.family not in known]
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
