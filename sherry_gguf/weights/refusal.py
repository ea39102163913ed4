"""What is said of weights that are not Sherry's, or that a type does not hold: the one place that words a refusal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from sherry_gguf.errors import Advice, SherryError, Way
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.weights.detect import Family, Look
from sherry_gguf.weights.fit import Misfit

SHERRY_METHOD: Final = "sherry"

# Other methods of the published trainers, and what their weights are.
_METHODS: Final = {
    "absmean": "dense ternary weights, 0 or the mean magnitude",
    "twn": "dense ternary weights, 0 or the mean of the kept magnitudes",
    "tequila": "dense ternary weights and biases made of dead ones",
    "ultraquantv2": "dense ternary weights and biases made of dead ones (Tequila)",
    "ultraquantv3": "dense ternary weights and biases made of dead ones (Tequila)",
    "ultraquantv4": "nothing: its published forward is not finished (Tequila)",
    "ultraquant": "dense ternary weights, and dead ones that act on the signs of inputs, for which llama.cpp has no "
    "place (Tequila's first version)",
    "binary": "weights of one magnitude, without zeros",
    "lsq": "integer levels times a learned scale",
    "seq": "levels of halves (0.5 and 1.5, with both signs) times a learned scale",
    "dlt": "ternary weights times a learned scale plus a learned offset",
}


def foreign_method(method: object, said_by: str) -> SherryError:
    """For a checkpoint that says it was trained by another method. said_by: what says so, such as a key."""
    known = next((what for name, what in _METHODS.items() if str(method).startswith(name)), None)
    what = f", which gives {known}" if known else ""
    return SherryError(
        f"{said_by} is {method!r}, not {SHERRY_METHOD!r}{what}; only Sherry's and dense ternary weights are converted"
    )


def foreign_weights(where: str, looks: Mapping[str, Look], foreign: Sequence[str]) -> SherryError:
    """For layers of another family. looks: of all layers; foreign: the names of those that are not Sherry's."""
    by_family: dict[Family, list[str]] = defaultdict(list)
    for name in foreign:
        by_family[looks[name].family].append(name)
    family, names = max(by_family.items(), key=lambda item: len(item[1]))
    look = looks[names[0]]
    scales = f", magnitudes {look.granularity}" if look.granularity else ""
    ways = [Way.CHANGE_WEIGHTS]
    if family is Family.SPARSE:
        ways.insert(0, Way.DECLARE_SPARSE)
    if family is Family.TERNARY and len(names) == len(looks):
        ways.insert(0, Way.DECLARE_TERNARY)
    if family is Family.ROUNDED and {look.family for look in looks.values()} <= {family, Family.TERNARY}:
        ways.insert(0, Way.DECLARE_ROUNDED)
    return SherryError(
        f"{where}: {len(names)} of {len(looks)} layers, the first {names[0]}, are {family.value}: "
        f"{look.zeros:.1%} zeros{scales}",
        *ways,
    )


def undeclared(where: str, floats: Sequence[str], total: int) -> SherryError:
    """For float layers of which nothing says that they are latents."""
    if len(floats) == total:
        return SherryError(
            f"{where}: all {total} layers hold {Family.FLOAT.value}, and config.json does not say that they were "
            f"trained with Sherry",
            Way.DECLARE,
            Way.DECLARE_STRIDE,
            Way.DECLARE_DENSE,
            Way.CALIBRATE,
            Way.CHANGE_WEIGHTS,
        )
    return SherryError(
        f"{where}: {len(floats)} of {total} layers, the first {floats[0]}, hold {Family.FLOAT.value} beside baked "
        f"layers",
        Way.ONLY_BAKED,
        Way.DECLARE,
    )


def misfits(
    found: Sequence[Misfit], asked: TensorType, tensors: int, weights: int, ways: Sequence[Advice | Way]
) -> SherryError:
    """For tensors that a type does not hold: the first by name, all by number. tensors, weights: those looked at."""
    first = found[0].matrix
    if first.row % asked.block:
        what = f"rows of {first.row} weights do not fit {asked.name}"
    else:
        least = "at least " if asked.planes == 1 else ""
        what = f"{least}{found[0].changed:,} of {first.weights:,} weights do not fit {asked.name} and would change"
    return SherryError(
        f"{first.name}: {what}: {asked.needs}; "
        f"{len(found)} of {tensors} tensors do not fit, with {sum(m.changed for m in found):,} of {weights:,} weights",
        *ways,
    )
