"""Which type each Sherry layer of the file gets: one that was seen to hold all of its weights.

Seen, because who shares a scale does not tell all: blocks of zeros fit beside any others, and rows that upstream stacks
may differ. So the weights are read once more, unless the plan leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from sherry_gguf.convert.model import Job, open_model, take_tensors
from sherry_gguf.errors import Advice, Way
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.formats.table import tensor_types
from sherry_gguf.formats.tensor_type import TensorType
from sherry_gguf.formats.tq2_0 import TQ2_0
from sherry_gguf.weights import refusal
from sherry_gguf.weights.channel_order import REGRIDDED
from sherry_gguf.weights.fit import Matrix, Misfit, holders, misfit

ANY = "F16"  # holds every fp16 number


@dataclass(frozen=True)
class Settled:
    """types: GGUF name -> type's name, none where all Sherry layers are SHERRY; notes: what to know about them."""

    types: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def settle(job: Job, outfile: Path, progress: bool = False) -> Settled:
    """Find the types of the tensors that nobody chose another type for.

    What is calibrated is made for the type asked for. Memory: one tensor. Raises SherryError if the type asked for
    would change any, once all were looked at.
    """
    if job.plan.is_calibrated or _is_sherry_throughout(job):
        return Settled()
    asked = job.types.asked  # what is said of a tensor that no candidate holds is about this type
    types: dict[str, str] = {}
    misfits: list[Misfit] = []
    weights = faster = 0
    for matrix in _matrices(job, outfile, progress):
        holder = next((t for t in job.types.candidates if matrix.held_by(t)), asked)
        types[matrix.name] = ANY if holder is None else holder.name
        weights += matrix.weights
        if asked is None:
            continue
        if holder is asked and (bad := misfit(matrix, asked)):
            misfits.append(bad)
        faster += not asked.is_fast and matrix.held_by(TQ2_0)
    if asked is not None and misfits:
        ways = _ways_out(misfits, asked, holders(_matrices(job, outfile, progress)))
        raise refusal.misfits(misfits, asked, len(types), weights, ways)
    return Settled(types, _notes(list(types.values()), faster))


def _matrices(job: Job, outfile: Path, progress: bool) -> Iterator[Matrix]:
    """The tensors that nobody chose another type for, alpha as trained. Each is gone when the next is asked for."""
    import gguf

    as_trained = open_model(replace(job, as_trained=True, losses={}), outfile)
    as_trained.prepare_tensors()
    tensors = take_tensors(as_trained)
    names = [name for name in tensors if name in as_trained.recorder.exact]
    for name in tqdm(names, desc="Settling types", unit="tensor", disable=not progress):
        values = gguf.LazyNumpyTensor.to_eager(tensors.pop(name).tensor)
        if job.unfit_scales:
            raise job.unfit_scales[-1]
        row = values.shape[-1]
        rows = [values.reshape(-1, row)]
        yield Matrix(name, values.size, row, lambda rows=rows: rows)  # type: ignore[misc]


def _is_sherry_throughout(job: Job) -> bool:
    """Whether SHERRY is wanted first, and the plan tells already that all Sherry layers are.

    It knows baked layers by a sample of rows only: others may have a scale for fewer weights, so these are read.
    """
    return job.types.asked is SHERRY and all(
        layer.source not in ("baked", "two-plane") and layer.piece == SHERRY.block and layer.grids == (SHERRY.grid,)
        for layer in job.plan.layers.values()
    )


def _ways_out(misfits: Sequence[Misfit], asked: TensorType, held: dict[str, list[TensorType]]) -> list[Advice]:
    """held: name of every tensor looked at -> the types that hold it."""
    of_all = [t for t in tensor_types() if all(t in types for types in held.values())]
    # whoever asks for a type that llama.cpp has without the patch gets no other kind proposed
    proposed = next((t for t in of_all if t.is_stock or asked.grid is not None), None)
    each_is_held = all(held[bad.matrix.name] for bad in misfits)
    if each_is_held and (proposed is None or (asked.grid is not None and len(misfits) < len(held))):
        return [Way.AUTO()]
    names = sorted({_layer_of(bad.matrix.name) for bad in misfits})
    ways = [Way.ALL_FIT(proposed.outtype) if proposed else Way.REST_AS("|".join(names), ANY.lower())]
    # neighbours make groups, and scales are those that the type's blocks can have: another order makes them fit
    if asked is REGRIDDED and SHERRY in of_all and any(t.block == REGRIDDED.block and t.grid is None for t in of_all):
        ways.append(Way.REGRID())
    return ways


def _layer_of(name: str) -> str:
    """``blk.3.ffn_down.weight`` -> ``ffn_down``"""
    return name.removesuffix(".weight").rpartition(".")[2]


def _notes(types: Sequence[str], faster: int) -> list[str]:
    notes = []
    for slow in (t for t in tensor_types() if not t.is_fast and t.name in types):
        notes.append(
            f"{types.count(slow.name)} tensors are {slow.name}, which is slow on x86: llama.cpp has no kernel for it "
            f"there, and runs it at 4 to 10% of {TQ2_0.name}'s speed (Q4_0 is exact too, twice as large, and fast)"
        )
    if faster:
        notes.append(f"{faster} of them would be as exact in {TQ2_0.name}, which is smaller and fast")
    if as_any := types.count(ANY):
        notes.append(f"{as_any} tensors fit no ternary type, and are stored as {ANY}")
    return notes
