"""The way of a checkpoint: plan, settle types, let upstream's converter write a temporary file, verify, rename it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sherry_gguf import llama_cpp
from sherry_gguf.checkpoint import Source
from sherry_gguf.convert import settings
from sherry_gguf.convert.calibrated import (
    Calibration,
    calibrate_job,
    calibration_job,
    mixed,
    notes_on,
    stock_types,
    without,
)
from sherry_gguf.convert.complete import require_loadable
from sherry_gguf.convert.guards import inputs_of, one_line_errors, require_tokenizer
from sherry_gguf.convert.library import use_library_quantizers
from sherry_gguf.convert.loading import load
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.naming import directory_for, template, under_its_name
from sherry_gguf.convert.parts import rename_all, temporaries_beside
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import regridded
from sherry_gguf.convert.settle import settle
from sherry_gguf.convert.summary import Conversion, WrittenTensor
from sherry_gguf.convert.type_choice import LIBRARY_TYPES, OUTPUT, TypeChoice
from sherry_gguf.convert.verify import require_finite
from sherry_gguf.convert.verify import verify as verify_file
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.files.outfile import naming_full_disk, require_free
from sherry_gguf.formats.registration import use_exact_q4_0, use_threads
from sherry_gguf.weights.channel_order import KEY, REGRIDDED


def convert(
    source: Source | Path,
    outfile: Path | None = None,
    *,
    types: TypeChoice | None = None,
    regrid: Literal["exact"] | None = None,
    calibration: Calibration | None = None,
    model_name: str | None = None,
    metadata: Path | None = None,
    part_bytes: int = 0,
    force: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert a checkpoint to GGUF.

    source         a directory, read as it declares itself; or a Source, which says more
    outfile        default: in the model's directory, named by upstream's rule; {ftype} in it is replaced
    types          of the file's tensors; the values written are those of exact blocks in whatever type
    regrid         reorder channels so that groups of neighbours are STQ1_0's (``weights/channel_order.py``)
    calibration    choose other weights for a plain model, on a text (``convert/calibrated.py``)
    metadata       a JSON file with general.* entries that win over what the model's folder says, as gguf-py reads it
    part_bytes     of tensors in a file at most: a larger model becomes parts, OUTFILE-00001-of-00002.gguf and so on
    force          replace an existing outfile (only once the new file is complete and verified)
    verify         compare the file with the checkpoint, and let llama.cpp load it where it is built
    dry_run        write nothing

    The pinned llama.cpp's source is fetched on first use. Raises SherryError, and then leaves outfile as it was.
    """
    source = Source(source) if isinstance(source, Path) else source
    types = types or TypeChoice()
    if regrid is not None and types.asked is not REGRIDDED:
        raise SherryError(
            f"regridding is for {REGRIDDED.name} alone, and {types.outtype or 'no type'} was asked for",
            Way.REGRID_TYPE(REGRIDDED.outtype),
        )
    if metadata is not None and not metadata.is_file():
        raise SherryError(f"{metadata}: no such file")
    # in a directory the file is named by upstream's rule, and parts by their number
    if outfile is not None and not outfile.is_dir() and not part_bytes:
        require_free(outfile, force or dry_run, inputs_of(source, metadata))
    llama_cpp.use_pinned_gguf()
    use_library_quantizers(types.library_types())
    use_exact_q4_0()
    use_threads()

    checkpoint = source.open()
    if calibration is None:
        plan = make_plan(checkpoint, source)
        job = Job(checkpoint, plan, types.of(plan.rule))
    else:
        job = calibration_job(checkpoint, source, types, calibration)
        if calibration.bits is not None:
            use_library_quantizers(stock_types(checkpoint, job.plan) & set(LIBRARY_TYPES))
    if regrid is not None:
        job = replace(job, plan=regridded(job.plan, checkpoint))
    proposed = template(outfile) if outfile else directory_for(source.model)
    require_tokenizer(checkpoint.directory)

    def prepared(job: Job) -> Any:
        """An instance of upstream's converter that knows all of the file's tensors and metadata."""
        instance = open_model(job, proposed, model_name, metadata, part_bytes)
        instance.prepare_tensors()
        with under_its_name(checkpoint.directory) as instance.dir_model_card:
            instance.prepare_metadata(vocab_only=False)
        settings.name_an_end(instance, checkpoint.config)
        _require_loadable(instance)
        return instance

    with one_line_errors(source):
        settled = settle(job, proposed, progress)
        job = replace(job, sherry_types=settled.types)
        instance = prepared(job)
        if calibration is not None and instance.recorder.otherwise:
            job = replace(job, plan=without(job.plan, instance.recorder.otherwise))
            instance = prepared(job)
    notes = [*_notes(job, instance), *settled.notes]
    if dry_run and calibration is not None and calibration.bits is not None:
        notes.append("here all are planes: calibration finds the matrices that get a stock type")
    conversion = _of(job, instance, notes)
    if dry_run:
        return conversion

    _require_free(conversion, force, inputs_of(source, metadata))
    target: Path = instance.fname_out
    if calibration is not None:
        with naming_full_disk(target):
            calibrated = calibrate_job(job, calibration, target, progress)
        if calibration.bits is not None:
            job, calibrated, note = mixed(job, calibrated, calibration.bits, instance.recorder.places)
            notes.append(note)
            with one_line_errors(source):
                instance = prepared(job)
            _require_free(_of(job, instance, notes), force, inputs_of(source, metadata))  # other parts, it may be
        conversion = replace(_of(job, instance, [*notes, *calibrated.said()]), losses=calibrated.weights)
    targets = conversion.files
    with temporaries_beside(targets) as temporaries:
        with one_line_errors(source), naming_full_disk(target):
            _write(job, instance, temporaries, progress)
            require_finite(temporaries, instance.recorder.exact)
            if verify:
                as_trained = open_model(replace(job, as_trained=True, losses={}), target)
                conversion = replace(
                    conversion, verdict=verify_file(temporaries, as_trained, progress, job.plan.is_calibrated)
                )
                job.losses.update(conversion.verdict.errors if conversion.verdict else {})
        if verify:
            conversion = replace(conversion, loaded=load(temporaries, [file.name for file in targets]))
        rename_all(temporaries, targets, force)
    if calibration is not None:
        calibrated.state.remove()
    return conversion


def _of(job: Job, instance: Any, notes: Sequence[str]) -> Conversion:
    """What the instance would write."""
    files = instance.gguf_writer.format_shard_names(instance.fname_out)
    return Conversion(files[0], job.plan.summary(), _written(instance), job.losses, notes, files)


def _require_free(conversion: Conversion, force: bool, inputs: Sequence[Path]) -> None:
    for file in conversion.files:
        require_free(file, force, inputs)


def _require_loadable(instance: Any) -> None:
    """Hold the tensors to write against the metadata to write."""
    import gguf

    metadata = {key: field.value for part in instance.gguf_writer.kv_data for key, field in part.items()}
    shapes = {tensor.name: tensor.shape for tensor in _written(instance)}
    known = [f"{gguf.TENSOR_NAMES[tensor]}.weight" for tensor in gguf.MODEL_TENSORS[instance.model_arch]]
    require_loadable(metadata, shapes, known, tied=bool(instance.hparams.get("tie_word_embeddings", True)))


def _write(job: Job, instance: Any, files: Sequence[Path], progress: bool) -> None:
    """Write the files, as many as gguf-py's writer has divided the tensors among.

    Raises UnfitScales if a scale that fp16 cannot hold went into a tensor that is not F32.
    """
    writer = instance.gguf_writer
    tensors = _written(instance)
    writer.format_shard_names = lambda path: list(files)
    writer.write_header_to_file(path=files[0])
    writer.write_kv_data_to_file()
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused when it is read back
            writer.write_tensors_to_file(progress=progress)
    except SherryError as error:
        # a type packs rows of a tensor, and knows neither its name nor the layer that it was
        raise (job.unfit_scales[-1] if job.unfit_scales else error) from error
    writer.close()
    by_choice = instance.recorder.baked - instance.recorder.exact
    if job.unfit_scales and any(t.type_name != "F32" for t in tensors if t.name in by_choice):
        raise job.unfit_scales[-1]


def _written(instance: Any) -> list[WrittenTensor]:
    return [
        WrittenTensor(name, info.dtype.name, tuple(info.shape), info.nbytes)
        for part in instance.gguf_writer.tensors
        for name, info in part.items()
    ]


def _notes(job: Job, instance: Any) -> list[str]:
    checkpoint, types, recorder = job.checkpoint, job.types, instance.recorder
    notes = []
    if job.plan.moved:
        notes.append(
            f"channels are in another order than the checkpoint's ({KEY}): the model says the same, but what was made "
            f"for its hidden states, as LoRA adapters and control vectors, does not fit this file"
        )
    if checkpoint.ignored:
        notes.append(f"ignored {len(checkpoint.ignored)} quantizer buffers, the first {checkpoint.ignored[0]}")
    notes += [f"ignored {name} beside the weights: llama.cpp has a cache of its own" for name in checkpoint.beside]
    notes += notes_on(job)
    notes += settings.notes(checkpoint.config, settings.end_token(instance))
    names = {name for part in instance.gguf_writer.tensors for name in part}
    if instance.hparams.get("tie_word_embeddings") and OUTPUT in names:
        notes.append(f"the tied embedding is written twice, as {OUTPUT} in {types.output}")
    others = [name for name in recorder.with_choice if name.startswith("blk.") and name not in recorder.baked]
    if restored := sum(layer.source == "rounded" for layer in job.plan.layers.values()):
        notes.append(
            f"{restored} layers were saved as w + (q - w), which rounding moves from q: the file has q, as was trained"
        )
    if others and not job.plan.is_calibrated:
        what = "Sherry" if job.plan.rule is None else "dense ternary"
        layers = sorted({name.split(".", 2)[2].removesuffix(".weight") for name in others})
        notes.append(
            f"{len(others)} matrices of the blocks are no {what} layers: {', '.join(layers)}; "
            f"if these were trained as such, name them too"
        )
    return notes
