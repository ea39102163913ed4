"""Which type each Sherry layer of the file gets: one that was seen to hold all of its weights.

Seen, as who shares a scale does not tell all: an empty run fits beside any other, and rows that upstream stacks may
differ. So the weights are read once more, unless the plan leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sherry_gguf.convert import misfit
from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.exact import BY_NAME, EXACT_TYPES, SHERRY
from sherry_gguf.weight_check import holds

F32 = npt.NDArray[np.float32]

_SLOW, _FAST = "Q2_0", "TQ2_0"


@dataclass(frozen=True)
class Settled:
    """types: GGUF name -> type, none where all Sherry layers are SHERRY; notes: what to know about them."""

    types: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def settle(job: Job, outfile: Path, progress: bool = False) -> Settled:
    """Find the types of the tensors that nobody chose another type for.

    Memory: one tensor. Raises SherryError if the type asked for would change any, once all were looked at.
    """
    if _is_sherry_throughout(job):
        return Settled()
    import gguf

    as_trained = open_model(replace(job, as_trained=True, losses={}), outfile)
    as_trained.prepare_tensors()
    tensors = take_tensors(as_trained)
    names = [name for name in tensors if name in as_trained.exact]
    asked = BY_NAME.get(job.types.outtype.upper())  # none for auto
    types: dict[str, str] = {}
    seen = []
    faster = 0
    for name in tqdm(names, desc="Settling types", unit="tensor", disable=not progress):
        values = gguf.LazyNumpyTensor.to_eager(tensors.pop(name).tensor)
        weights = values.reshape(-1, values.shape[-1])
        if asked is None:
            types[name] = _smallest(weights)
            continue
        seen.append(misfit.look_at(name, weights, asked))
        types[name] = asked.name
        faster += asked.name == _SLOW and holds(weights, BY_NAME[_FAST])
    if asked is not None:
        misfit.require_none(seen, asked)
    return Settled(types, _notes(list(types.values()), faster))


def _is_sherry_throughout(job: Job) -> bool:
    """Whether SHERRY was asked for, and the plan tells already that all Sherry layers are.

    It knows baked layers by a sample of rows; SHERRY's packing refuses any that are not.
    """
    return job.types.outtype == SHERRY.name.lower() and all(
        layer.span == SHERRY.block and layer.groups == (SHERRY.groups,) for layer in job.plan.layers.values()
    )


def _smallest(weights: F32) -> str:
    return next((kind.name for kind in EXACT_TYPES if holds(weights, kind)), misfit.ANY)


def _notes(types: Sequence[str], faster: int) -> list[str]:
    notes = []
    if slow := types.count(_SLOW):
        notes.append(
            f"{slow} tensors are {_SLOW}, which is slow on x86: llama.cpp has no kernel for it there, "
            f"and runs it at 4 to 10% of {_FAST}'s speed (Q4_0 is exact too, twice as large, and fast)"
        )
    if faster:
        notes.append(
            f"{faster} of them would be as exact in {_FAST}, which is smaller and fast (--outtype {_FAST.lower()})"
        )
    if any_type := types.count(misfit.ANY):
        notes.append(f"{any_type} tensors fit no ternary type, and are stored as {misfit.ANY}")
    return notes
