"""Tensors that the type asked for does not hold: how many of their weights it would change, and what holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.errors import SherryError
from sherry_gguf.exact import EXACT_TYPES, SHERRY, STQ1_0, ExactType
from sherry_gguf.weight_check import count_changed, holds

F32 = npt.NDArray[np.float32]

# llama.cpp has these without the patch: who asks for one of them gets no other kind proposed.
_UPSTREAM = [kind for kind in EXACT_TYPES if kind.groups is None]
ANY = "F16"  # holds every fp16 number


@dataclass(frozen=True)
class Tensor:
    """A tensor and the type asked for: how many of its weights that would change at least, and which types hold it.

    row: its length where rows are no whole blocks of the type, and so no weight fits
    """

    name: str
    weights: int
    changed: int
    row: int | None
    held_by: frozenset[str]


def look_at(name: str, weights: F32, asked: ExactType) -> Tensor:
    """float32[rows, k], alpha as trained -> what to say of it."""
    if holds(weights, asked):
        # known without a look: any blocks of other types that lie inside the blocks asked for
        same = (kind.name for kind in _UPSTREAM if asked.block % kind.block == 0)
        return Tensor(name, weights.size, 0, None, frozenset(same))
    k = weights.shape[1]
    whole = k % asked.block == 0
    return Tensor(
        name,
        weights.size,
        count_changed(weights, asked) if whole else weights.size,
        None if whole else k,
        frozenset(kind.name for kind in EXACT_TYPES if holds(weights, kind)),
    )


def require_none(tensors: Sequence[Tensor], asked: ExactType) -> None:
    """Raise SherryError if there are misfits: the first by name, all by number, and the way out."""
    misfits = [tensor for tensor in tensors if tensor.changed]
    if not misfits:
        return
    first = misfits[0]
    if first.row is not None:
        what = f"rows of {first.row} weights do not fit {asked.name}"
    else:
        what = f"at least {first.changed:,} of {first.weights:,} weights do not fit {asked.name} and would change"
    raise SherryError(
        f"{first.name}: {what}: {asked}; "
        f"{len(misfits)} of {len(tensors)} tensors do not fit, with {sum(t.changed for t in misfits):,} of "
        f"{sum(t.weights for t in tensors):,} weights; {_way_out(tensors, misfits, asked)}"
    )


def _way_out(tensors: Sequence[Tensor], misfits: Sequence[Tensor], asked: ExactType) -> str:
    held_by = frozenset.intersection(*(tensor.held_by for tensor in tensors))
    proposed = _UPSTREAM if asked.groups is None else EXACT_TYPES
    other = next((kind.name.lower() for kind in proposed if kind.name in held_by), None)
    each_is_held = all(tensor.held_by for tensor in misfits)
    if each_is_held and (other is None or (asked.groups is not None and len(misfits) < len(tensors))):
        return "--outtype auto takes for each the smallest type that holds it"
    ways = [f"--outtype {other} holds all" if other else f"--tensor-type REGEX={ANY.lower()} holds the others"]
    # Sherry's neighbours, with scales that STQ1_0's blocks can have: another order of the channels makes them fit
    if asked is STQ1_0 and {SHERRY.name, "TQ1_0"} <= held_by:
        ways.append("--regrid exact makes them fit")
    return ", ".join(ways)
