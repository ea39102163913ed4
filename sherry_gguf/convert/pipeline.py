"""The way of a checkpoint: plan, settle types, let upstream's converter write a temporary file, verify, rename it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.library import use_library_quantizers
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import REGRIDDED_TYPE, regridded
from sherry_gguf.convert.report import Report, WrittenTensor
from sherry_gguf.convert.settle import settle
from sherry_gguf.convert.types import OUTPUT, TypeChoice
from sherry_gguf.convert.verify import verify as verify_file
from sherry_gguf.errors import SherryError
from sherry_gguf.files.outfile import rename_durably, require_free, temporary_beside
from sherry_gguf.gguf_types import use_exact_q4_0
from sherry_gguf.groups import Groups
from sherry_gguf.quantize import Granularity
from sherry_gguf.regrid import KEY


def convert(
    model: Path,
    outfile: Path | None = None,
    *,
    config_dir: Path | None = None,
    granularity: Granularity | None = None,
    sherry_layers: str | None = None,
    allow_lossy: bool = False,
    groups: Groups | None = None,
    types: TypeChoice | None = None,
    regrid: Literal["exact"] | None = None,
    model_name: str | None = None,
    metadata: Path | None = None,
    force: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    progress: bool = False,
) -> Report:
    """Convert the checkpoint ``model`` (a directory, or a state dict with ``config_dir``) to GGUF.

    outfile        default: in the model's directory, named by upstream's rule; {ftype} in it is replaced
    granularity    declares latent weights to be Sherry's, and wins over config.json
    sherry_layers  regex of the checkpoint's names of the quantized linear layers, and wins over config.json
    allow_lossy    quantize weights that are not Sherry's all the same
    groups         of which weights, for latent ones, and wins over config.json; those of baked ones are seen
    types          of the file's tensors; the values written are those of exact blocks in whatever type
    regrid         reorder channels so that groups of consecutive weights are STQ1_0's (``sherry_gguf.regrid``)
    force          replace an existing outfile (only once the new file is complete and verified)
    dry_run        write nothing

    The pinned llama.cpp's source is fetched on first use. Raises SherryError, and then leaves outfile as it was.
    """
    types = types or TypeChoice()
    if regrid is not None and types.outtype != REGRIDDED_TYPE:
        raise SherryError(f"--regrid {regrid} puts layers on the grid of STQ1_0 alone: give --outtype {REGRIDDED_TYPE}")
    if metadata is not None and not metadata.is_file():
        raise SherryError(f"{metadata}: no such file (--metadata)")
    if outfile is not None:
        require_free(outfile, force or dry_run)
    llama_cpp.use_pinned_gguf()
    use_library_quantizers(types.library_types())
    use_exact_q4_0()

    checkpoint = Checkpoint(model, config_dir)
    plan = make_plan(checkpoint, granularity, sherry_layers, allow_lossy, groups)
    if regrid is not None:
        plan = regridded(plan, checkpoint)
    job = Job(checkpoint, plan, types)
    with _upstream_errors(model):
        settled = settle(job, outfile or _directory_for(model), progress)
        job = replace(job, sherry_types=settled.types)
        instance = open_model(job, outfile or _directory_for(model), model_name, metadata)
        instance.prepare_tensors()
        instance.prepare_metadata(vocab_only=False)
    target: Path = instance.fname_out
    notes = [*_notes(job, instance), *settled.notes]
    report = Report(target, job.plan.summary(), _written(instance), job.losses, notes)
    if dry_run:
        return report

    require_free(target, force)
    with temporary_beside(target) as temporary:
        with _upstream_errors(model):
            _write(instance, temporary, progress)
            if verify:
                as_trained = open_model(replace(job, as_trained=True, losses={}), target)
                report = replace(report, verdict=verify_file(temporary, as_trained, progress))
        rename_durably(temporary, target)
    return report


def _directory_for(model: Path) -> Path:
    return model if model.is_dir() else model.parent


def _write(instance: Any, path: Path, progress: bool) -> None:
    writer = instance.gguf_writer
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=progress)
    writer.close()


@contextmanager
def _upstream_errors(model: Path) -> Iterator[None]:
    """Upstream's converter raises whatever comes up for a checkpoint it cannot read: make that one line."""
    try:
        yield
    except (SherryError, MemoryError):
        raise
    except OSError as error:
        raise SherryError(f"{error.filename or model}: {error.strerror or error}") from error
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        raise SherryError(
            f"{model}: llama.cpp's converter stopped with {type(error).__name__}: {said} (--verbose shows where)"
        ) from error


def _written(instance: Any) -> list[WrittenTensor]:
    return [
        WrittenTensor(name, info.dtype.name, tuple(info.shape), info.nbytes)
        for part in instance.gguf_writer.tensors
        for name, info in part.items()
    ]


def _notes(job: Job, instance: Any) -> list[str]:
    checkpoint, types = job.checkpoint, job.types
    notes = []
    if job.plan.moved:
        notes.append(
            f"channels are in another order than the checkpoint's ({KEY}): the model says the same, but what was made "
            f"for its hidden states, as LoRA adapters and control vectors, does not fit this file"
        )
    if checkpoint.ignored:
        notes.append(f"ignored {len(checkpoint.ignored)} quantizer buffers, the first {checkpoint.ignored[0]}")
    names = {name for part in instance.gguf_writer.tensors for name in part}
    if instance.hparams.get("tie_word_embeddings") and OUTPUT in names:
        notes.append(f"the tied embedding is written twice, as {OUTPUT} in {types.output}")
    others = [name for name in instance.with_choice if name.startswith("blk.") and name not in instance.on_grid]
    if others:
        kinds = sorted({name.split(".", 2)[2].removesuffix(".weight") for name in others})
        notes.append(
            f"{len(others)} matrices of the blocks are no Sherry layers: {', '.join(kinds)} "
            f"(--sherry-layers REGEX names other layers, if these were trained as such)"
        )
    return notes
