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

from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.convert.types import AUTO
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.exact import BY_NAME, EXACT_TYPES, SHERRY, ExactType
from sherry_gguf.weight_check import count_changed

F32 = npt.NDArray[np.float32]

# llama.cpp has these without the patch.
_UPSTREAM = [kind for kind in EXACT_TYPES if kind is not SHERRY]
_ANY = "F16"  # holds every fp16 number
_SLOW, _FAST = "Q2_0", "TQ2_0"


@dataclass(frozen=True)
class Settled:
    """types: GGUF name -> type, none where all Sherry layers are SHERRY; notes: what to know about them."""

    types: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def settle(job: Job, outfile: Path, progress: bool = False) -> Settled:
    """Find the types of the tensors that nobody chose another type for.

    Memory: one tensor. Raises SherryError for the first that the type asked for would change.
    """
    outtype = job.types.outtype
    if _is_sherry_throughout(job):
        return Settled()
    import gguf

    as_trained = open_model(replace(job, as_trained=True, losses={}), outfile)
    as_trained.prepare_tensors()
    tensors = take_tensors(as_trained)
    names = [name for name in tensors if name in as_trained.exact]
    types: dict[str, str] = {}
    faster = 0
    for name in tqdm(names, desc="Settling types", unit="tensor", disable=not progress):
        values = gguf.LazyNumpyTensor.to_eager(tensors.pop(name).tensor)
        weights = values.reshape(-1, values.shape[-1])
        with naming(name):
            types[name] = _smallest(weights) if outtype == AUTO else _asked_for(weights, BY_NAME[outtype.upper()])
        faster += outtype != AUTO and types[name] == _SLOW and _holds(BY_NAME[_FAST], weights)
    return Settled(types, _notes(list(types.values()), faster))


def _is_sherry_throughout(job: Job) -> bool:
    """Whether the plan tells already that all Sherry layers are SHERRY.

    It knows baked layers by a sample of rows. ``auto`` looks at all; asked for SHERRY, its packing refuses the others.
    """
    outtype, layers = job.types.outtype, job.plan.layers.values()
    if outtype not in (SHERRY.name.lower(), AUTO) or any(layer.span != SHERRY.block for layer in layers):
        return False
    return outtype != AUTO or all(layer.source != "baked" for layer in layers)


def _holds(kind: ExactType, weights: F32) -> bool:
    return weights.shape[1] % kind.block == 0 and count_changed(weights, kind) == 0


def _smallest(weights: F32) -> str:
    return next((kind.name for kind in EXACT_TYPES if _holds(kind, weights)), _ANY)


def _asked_for(weights: F32, kind: ExactType) -> str:
    """The type's name; SherryError unless it holds float32[rows, k]."""
    if _holds(kind, weights):
        return kind.name
    k = weights.shape[1]
    if k % kind.block:
        what = f"rows of {k} weights do not fit {kind.name}"
    else:
        what = f"{count_changed(weights, kind):,} of {weights.size:,} weights do not fit {kind.name} and would change"
    other = next((f"--outtype {other.name.lower()}" for other in _UPSTREAM if _holds(other, weights)), None)
    raise SherryError(
        f"{what}: its blocks have {kind.block} weights and one scale; "
        f"{other or f'--tensor-type REGEX={_ANY.lower()}'} holds this tensor"
    )


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
    if any_type := types.count(_ANY):
        notes.append(f"{any_type} tensors fit no ternary type, and are stored as {_ANY}")
    return notes
