"""A plan for a plain model, whose matrices become planes of Sherry that are chosen on a text (``calibrate/``)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from sherry_gguf.calibrate.layers import Calibrated, calibrate
from sherry_gguf.calibrate.mixed import alternatives, spend
from sherry_gguf.calibrate.state import State
from sherry_gguf.calibrate.text import read_windows
from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert.model import LM_HEAD, Job, has_own_head
from sherry_gguf.convert.plan import Layer, Plan, look_at_layers
from sherry_gguf.convert.type_choice import DEFAULT_EMBEDDING_TYPE, TypeChoice
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.formats.table import named
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.weights import refusal
from sherry_gguf.weights.detect import Family
from sherry_gguf.weights.granularity import Granularity

KEY: Final = "sherry.calibration"
METHOD: Final = 1  # a number that changes with the bytes that the same model and text give
_TYPES: Final = ("SHERRY_2P", "SHERRY")
_MODEL_FILES: Final = (".safetensors", ".bin", ".pt", ".pth", ".json")


@dataclass(frozen=True)
class Calibration:
    """The user's consent to change weights, and on what to choose them.

    text    UTF-8, of the sort that the model will read and write
    tokens  how many of it are used, at most
    memory  GiB that activations may take; they go to disk where they would take more
    seed    decides which windows of the text are used
    bits    of a weight of the matrices that are calibrated, in the mean: those that need it most get a stock type.
            None: all are planes
    """

    text: Path
    tokens: int = 32768
    memory: float = 4.0
    seed: int = 0
    bits: float | None = None


def require_type(types: TypeChoice) -> TensorType:
    """The type asked for; SherryError if none was, or one that calibration does not write."""
    able = [tensor_type for name in _TYPES if (tensor_type := named(name)) is not None]
    asked = types.asked if types.outtype else None
    if asked not in able or asked is None:
        raise SherryError(
            f"calibration is for {' and '.join(t.name for t in able)}, and {types.outtype or 'no type'} was asked for",
            Way.REGRID_TYPE(able[0].outtype),
        )
    return asked


def calibrated_plan(checkpoint: Checkpoint, source: Source, asked: TensorType, head: bool = False) -> Plan:
    """Every linear layer of the decoder whose rows are whole blocks; the others are kept in a stock type.

    head: the output is one of them. Raises SherryError for a checkpoint that needs no calibration, being Sherry, for
    one without such layers, and for a head that cannot be one.
    """
    looks = look_at_layers(checkpoint, source)
    trained = [name for name, look in looks.items() if look.family is Family.SHERRY]
    if source.granularity or checkpoint.declared_granularity() or trained:
        raise SherryError(f"{checkpoint.path}: was trained as Sherry, and is exact as it is", Way.NO_CALIBRATION)
    if any(look.family is Family.TWO_PLANES for look in looks.values()):
        raise SherryError(f"{checkpoint.path}: has two planes already, and is exact as it is", Way.NO_CALIBRATION)
    if foreign := [name for name, look in looks.items() if look.family not in (Family.FLOAT, Family.SPARSE)]:
        raise refusal.foreign_weights(str(checkpoint.path), looks, foreign)
    shapes = {name: checkpoint.info(name).shape for name in looks}
    fitting = [name for name, shape in shapes.items() if len(shape) == 2 and shape[-1] % asked.block == 0]
    if not fitting:
        name, shape = next(iter(shapes.items()))
        raise SherryError(
            f"{checkpoint.path}: of its {len(shapes)} linear layers none has rows that are a multiple of "
            f"{asked.block}, which {asked.name} needs; the first is {name}, of shape {list(shape)}"
        )
    stock = frozenset(shapes) - frozenset(fitting)
    if head:
        fitting.append(_head(checkpoint, asked))
    layers = {name: Layer("calibrated", asked.block, ("consecutive",)) for name in fitting}
    return Plan(layers, Granularity("per_group", asked.block), stock=stock)


def _head(checkpoint: Checkpoint, asked: TensorType) -> str:
    if not has_own_head(checkpoint):
        raise SherryError(
            f"{checkpoint.path}: its output is its embedding; calibrated is only one of its own",
            Way.OUTPUT_TYPE,
        )
    if (row := checkpoint.info(LM_HEAD).shape[-1]) % asked.block:
        raise SherryError(
            f"{LM_HEAD}: rows of {row} weights are no multiple of {asked.block}, which {asked.name} needs",
            Way.OUTPUT_TYPE,
        )
    return LM_HEAD


def calibration_job(checkpoint: Checkpoint, source: Source, types: TypeChoice, calibration: Calibration) -> Job:
    """The job whose weights ``calibrate_job`` finds. Raises SherryError for another type, a text that is too short, and
    a checkpoint that needs no calibration or cannot get one.
    """
    asked = require_type(types)
    if calibration.bits is not None and not (own := asked.bits_per_weight) < calibration.bits:
        raise SherryError(f"{calibration.bits:g} bits a weight were asked for, and {asked.name} takes {own:g} already")
    plan = calibrated_plan(checkpoint, source, asked, types.head)
    windows = read_windows(calibration.text, checkpoint, calibration.tokens, calibration.seed)
    provenance: dict[str, str | int] = {
        f"{KEY}.text_sha256": windows.sha256,
        f"{KEY}.tokens": windows.tokens.numel(),
        f"{KEY}.seed": calibration.seed,
    }
    return Job(checkpoint, plan, types, windows=windows.tokens, provenance=provenance)


def without(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan without layers for which the user chose another type: these are stored as they are in the checkpoint.

    Raises SherryError for experts: of those upstream's converter does not tell which tensors of the checkpoint it
    stacks in one.
    """
    if stacked := next((name for name in names if ".experts." in name), None):
        raise SherryError(
            f"{stacked}: its experts are calibrated all or not at all, and a type of its own was chosen for some",
            Way.LEAVE_OUT,
        )
    return replace(plan, layers={name: layer for name, layer in plan.layers.items() if name not in names})


def calibrate_job(job: Job, calibration: Calibration, target: Path, progress: bool) -> Calibrated:
    """Find the job's weights, which takes minutes to hours. What is finished stays in a folder beside ``target``."""
    asked = require_type(job.types)
    assert job.windows is not None
    state = State(target.with_name(f"{target.name}.calibration"), _facts(job, asked, calibration.bits is not None))
    try:
        result = calibrate(
            job.checkpoint,
            list(job.plan.layers),
            job.windows,
            state,
            planes=asked.planes,
            memory=calibration.memory,
            instead=calibration.bits is not None,
            progress=progress,
        )
    finally:
        state.remove_if_empty()
    job.calibrated.update({name: partial(result.load, name) for name in job.plan.layers})
    return result


def stock_types(checkpoint: Checkpoint, plan: Plan) -> set[str]:
    """The types that ``mixed`` may give to matrices of a plan."""
    return {type_name for name in plan.layers for type_name in alternatives(checkpoint.info(name).shape[-1])}


def mixed(
    job: Job, calibrated: Calibrated, bits: float, tensors: Mapping[str, Set[str]]
) -> tuple[Job, Calibrated, str]:
    """The job with a stock type for the matrices that need more bits most; what is left of the calibration; a note.

    bits     of a weight, in the mean of all calibrated matrices, at most
    tensors  checkpoint's name -> the tensors of the file that hold it; what shares one with others stays planes
    """
    sizes = {name: math.prod(job.checkpoint.info(name).shape) for name in job.plan.layers}
    own = require_type(job.types).bits_per_weight
    holds = Counter(tensor for places in tensors.values() for tensor in places)
    alone = {name for name, places in tensors.items() if all(holds[tensor] == 1 for tensor in places)}
    instead = {name: found for name, found in calibrated.instead.items() if name in alone}
    chosen = spend(calibrated.losses, instead, sizes, own, bits)
    if not chosen:
        return job, calibrated, f"{bits:g} bits a weight leave no matrix a stock type: that takes more"
    overrides = [(f"^{re.escape(t)}$", type_name) for name, type_name in chosen.items() for t in sorted(tensors[name])]
    types = replace(job.types, overrides=(*overrides, *job.types.overrides))
    parts = []
    for type_name in sorted(set(chosen.values())):
        names = [name for name, its_type in chosen.items() if its_type == type_name]
        parts.append(f"{len(names)} as {type_name}: {_by_place(names)}")
    note = f"{len(chosen)} of {len(sizes)} matrices are the checkpoint's in a stock type, {'; '.join(parts)}"
    return replace(job, plan=without(job.plan, list(chosen)), types=types), calibrated.without(chosen), note


def notes_on(job: Job) -> list[str]:
    """What is to be said of a text that is short, and of linear layers that are not calibrated."""
    plan, checkpoint, notes = job.plan, job.checkpoint, []
    longest = max((checkpoint.info(name).shape[-1] for name in plan.layers), default=0)
    if job.windows is not None and job.windows.numel() < longest:
        notes.append(
            f"the {job.windows.numel():,} tokens are fewer than the {longest:,} weights of the longest rows: "
            "with more of them the model would lose less"
        )
    block = next((layer.piece for layer in plan.layers.values()), 1)
    for row in sorted({checkpoint.info(name).shape[-1] for name in plan.stock}):
        names = [name for name in plan.stock if checkpoint.info(name).shape[-1] == row]
        why = f"rows of {row} weights are no multiple of {block}" if row % block else "they are stacks of experts"
        notes.append(
            f"{len(names)} linear layers are kept, because {why}; they are stored as {DEFAULT_EMBEDDING_TYPE} where no "
            f"other type is chosen: {_by_place(names)}"
        )
    return notes


def _facts(job: Job, asked: TensorType, instead: bool) -> dict[str, object]:
    """What the weights depend on: model, text, method, and the arithmetic at hand. instead: what else is remembered."""
    checkpoint = job.checkpoint
    inputs = list(checkpoint.path.iterdir()) if checkpoint.path.is_dir() else [checkpoint.path]
    files = [path.stat() for path in (*inputs, checkpoint.directory / "config.json") if path.suffix in _MODEL_FILES]
    return {
        **job.provenance,
        "method": METHOD,
        "planes": asked.planes,
        "instead": instead,
        "layers": sorted(job.plan.layers),
        "files": sorted([stat.st_size, stat.st_mtime_ns] for stat in files),
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
    }


def _by_place(names: Sequence[str]) -> str:
    """``model.layers.0.mlp.up_proj.weight`` and 29 more -> ``mlp.up_proj (30)``"""
    counts = Counter(".".join(name.removesuffix(".weight").split(".")[-2:]) for name in sorted(names))
    return ", ".join(f"{place} ({count})" for place, count in counts.items())
