"""Upstream's converter of an architecture, with Sherry layers baked on their way in.

``conversion/`` of the pinned llama.cpp maps names, permutes, stacks experts, and writes tokenizers and parameters. It
is driven through the methods that its own architectures override; nothing of it is rewritten here.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.replaced import replaced
from sherry_gguf.convert.bake import bake, bias_name, bias_of, relative_error
from sherry_gguf.convert.complete import require_whole_blocks
from sherry_gguf.convert.plan import Layer, Plan
from sherry_gguf.convert.recorder import Recorder
from sherry_gguf.convert.settings import QUANTIZATION, require_computed, with_architecture
from sherry_gguf.convert.type_choice import OUTPUT, TOKEN_EMBEDDING, TypeChoice
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.formats.scales import UnfitScales
from sherry_gguf.formats.table import VERSION_KEY, format_version, named
from sherry_gguf.threads import in_parts, rows_of
from sherry_gguf.weights.channel_order import EXACT, to_stride
from sherry_gguf.weights.channel_order import KEY as REGRID_KEY
from sherry_gguf.weights.floats import floats

LM_HEAD = "lm_head.weight"
_LARGE = 1 << 22  # weights that are written at a time
UPSTREAM_LOG = "hf-to-gguf"  # the name of upstream's logger


@dataclass
class Job:
    """One conversion by upstream's converter: what goes in, and what was found on the way.

    sherry_types  GGUF name -> type of the Sherry layers for which nobody chose a type; where it is not told, the one
                  asked for, or SHERRY
    as_trained    leave alpha unrounded and every tensor F32, to compare a written file with
    losses        layer -> relative error, where weights were changed
    unfit_scales  what is wrong with layers that have scales that fp16 cannot hold
    calibrated    layer -> its chosen weights float32[rows, k], of a calibrated plan; there before any is read
    windows       int64[windows, length], the tokens on which these are chosen
    provenance    metadata of the file that say how its weights came about
    """

    checkpoint: Checkpoint
    plan: Plan
    types: TypeChoice
    sherry_types: Mapping[str, str] = field(default_factory=dict)
    as_trained: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    unfit_scales: list[UnfitScales] = field(default_factory=list)
    calibrated: dict[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    windows: torch.Tensor | None = None
    provenance: Mapping[str, str | int] = field(default_factory=dict)


def open_model(
    job: Job, outfile: Path, model_name: str | None = None, metadata: Path | None = None, part_bytes: int = 0
) -> Any:
    """An instance of upstream's ModelBase for this checkpoint's architecture. Its weights are lazy: none is read.

    part_bytes: of tensors in a file at most, of which there are several then; 0 for one file of any size.
    Needs llama_cpp.use_pinned_gguf() first. Raises SherryError for an architecture that upstream does not know.
    """
    import gguf

    logging.getLogger(UPSTREAM_LOG).addFilter(_is_news)
    directory = Path(os.path.abspath(job.checkpoint.directory))  # its name becomes the model's
    with upstream_class(directory, job.checkpoint.path) as (base, hparams):
        if has_own_head(job.checkpoint):
            hparams["tie_word_embeddings"] = False
        return _sherry_class(base, job)(
            directory,
            _file_type_of_plain_weights(gguf, job),
            outfile,
            model_name=model_name,
            metadata_override=metadata,
            split_max_size=part_bytes,
            hparams=hparams,
        )


@contextmanager
def upstream_class(directory: Path, path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Upstream's class for the architecture of a directory, to be instantiated in the context, and its settings.

    path: what messages name. Raises SherryError for an architecture that upstream does not know.
    """
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    load = ModelBase.load_hparams
    hparams = with_architecture(load(directory, False))
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        base = get_model_class(architecture)
    except NotImplementedError:
        raise SherryError(f"{path}: llama.cpp's converter does not know {architecture}") from None
    require_computed(hparams, gguf.MODEL_ARCH_NAMES[base.model_arch])
    hparams.pop(QUANTIZATION, None)  # upstream would dequantize what is not quantized
    # classes of some architectures read config.json once more
    with replaced(ModelBase, "load_hparams", lambda *args, **kwargs: with_architecture(load(*args, **kwargs))):
        yield base, hparams


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether a head is stored that is no copy of an embedding: PyTorch uses it, even if config.json ties the two."""
    if LM_HEAD not in checkpoint.names:
        return False
    info = checkpoint.info(LM_HEAD)
    alike = [name for name in checkpoint.names if "emb" in name and checkpoint.info(name) == info]
    head = checkpoint.load(LM_HEAD)
    return not any(torch.equal(checkpoint.load(name), head) for name in alike)


def _is_news(record: logging.LogRecord) -> bool:
    """Not: transformers 5 writes "rope_type": "default" for no scaling, which upstream warns of and then handles."""
    return record.getMessage() != "Unknown RoPE type: default"


def take_tensors(instance: Any) -> dict[str, Any]:
    """The prepared tensors of an ``open_model`` by name, removed from its writer.

    They are lazy, and once read they keep their weights: pop each one, so that these are freed before the next.
    """
    (tensors,) = instance.gguf_writer.tensors
    instance.gguf_writer.tensors = []
    taken: dict[str, Any] = tensors
    return taken


def _file_type_of_plain_weights(gguf: Any, job: Job) -> Any:
    """The LlamaFileType under which upstream stores weights that nobody chose a type for: one that holds them all."""
    infos = (job.checkpoint.info(name) for name in job.checkpoint.names if name not in job.plan.layers)
    dtypes = {info.dtype for info in infos if len(info.shape) > 1}
    return {
        frozenset({torch.bfloat16}): gguf.LlamaFileType.MOSTLY_BF16,
        frozenset({torch.float16}): gguf.LlamaFileType.MOSTLY_F16,
    }.get(frozenset(dtypes), gguf.LlamaFileType.ALL_F32)


def _sherry_class(base: Any, job: Job) -> Any:
    """A subclass of an upstream architecture. Made at run time, since which one it is stands in config.json."""
    import gguf
    from conversion import LazyTorchTensor

    class SherryModel(base):
        """Upstream's converter that reads the job's checkpoint, and asks its ``recorder`` for types."""

        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
            self.recorder = Recorder(job.types, job.sherry_types)
            tensors: dict[str, Callable[[], Any]] = {}
            for name in job.checkpoint.names:
                if name == LM_HEAD and self.hparams.get("tie_word_embeddings"):
                    continue  # a copy that PyTorch does not use either
                if kept := self.filter_tensors((name, partial(_lazy, LazyTorchTensor, job, name))):
                    tensors[kept[0]] = kept[1]
                    if name in job.plan.layers:
                        self.recorder.layers[kept[0]] = name
                        if job.plan.layers[name].source == "two-plane":
                            self.recorder.sums.add(kept[0])
                    if name in job.plan.stock:
                        self.recorder.stock.add(kept[0])
            if (rule := job.plan.rule) is not None and rule.has_bias:
                # a stored bias is replaced by the sum
                tensors |= {
                    bias_name(name): partial(_lazy_bias, LazyTorchTensor, job, name) for name in job.plan.layers
                }
            return tensors

        def weight_quant(self, weight: Any) -> Any:
            """Upstream's BitNet scales what it is given by its mean, and here that has its scale already."""
            return weight

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
            tensors: Iterable[tuple[str, Any]] = super().modify_tensors(data_torch, name, bid)
            for new_name, tensor in tensors:
                if tensor is data_torch and not job.as_trained and (stored := getattr(tensor, "large", None)):
                    tensor = _chunked(gguf.LazyChunkedTensor, job.checkpoint, stored)
                yield new_name, tensor
                tied = self.hparams.get("tie_word_embeddings")
                if new_name == TOKEN_EMBEDDING and tied and job.types.separate_output():
                    yield OUTPUT, tensor

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            chosen = self.recorder.choose(name, new_name, n_dims)
            if job.as_trained:
                return gguf.GGMLQuantizationType.F32
            if chosen is None:
                return super().tensor_force_quant(name, new_name, bid, n_dims)
            return gguf.GGMLQuantizationType[chosen]

        def prepare_tensors(self) -> None:
            super().prepare_tensors()
            infos = {name: info for part in self.gguf_writer.tensors for name, info in part.items()}
            stored = {name: info.dtype.name for name, info in infos.items()}
            require_whole_blocks(stored, self.block_count)
            if OUTPUT not in stored and not self.hparams.get("tie_word_embeddings") and LM_HEAD in job.checkpoint.names:
                raise SherryError(
                    f"{LM_HEAD} is no copy of the embedding, and llama.cpp's converter drops it for this architecture"
                )
            if not job.as_trained:
                rows = {name: info.shape[-1] for name, info in infos.items() if info.shape}
                blocks = {qtype.name: block for qtype, (block, _) in gguf.GGML_QUANT_SIZES.items()}
                self.recorder.require_stored(stored, rows, blocks)
                self._name_types(stored, {name: math.prod(info.shape) for name, info in infos.items()})
            if job.plan.moved:
                self.gguf_writer.add_string(REGRID_KEY, EXACT)
            for key, value in job.provenance.items():
                add = self.gguf_writer.add_string if isinstance(value, str) else self.gguf_writer.add_uint32
                add(key, value)

        def _name_types(self, stored: Mapping[str, str], weights: Mapping[str, int]) -> None:
            if (main := self.recorder.main_type(stored, weights)) is not None:
                self.ftype = gguf.LlamaFileType[f"MOSTLY_{main}"]
            if (version := format_version(filter(None, map(named, stored.values())))) is not None:
                self.gguf_writer.add_uint32(VERSION_KEY, version)

    return SherryModel


def _load_finite(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor that is stored as it is; of bf16 in float32, as upstream's converter takes it.

    Raises SherryError for NaN and infinities, which no type should hold.
    """
    tensor = checkpoint.load(name)
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.reshape(-1)
    is_short = tensor.dtype == torch.bfloat16
    found = np.empty(len(stored) if is_short else 0, dtype=np.float32)

    def part(start: int, stop: int) -> bool:
        values = floats(stored[start:stop])
        if is_short:
            found[start:stop] = values
        return bool(np.isfinite(values).all())

    if not all(in_parts(part, len(stored), rows_of(1))):
        raise _not_finite(name, tensor)
    return torch.from_numpy(found.reshape(tensor.shape)) if is_short else tensor


def _not_finite(name: str, tensor: torch.Tensor) -> SherryError:
    bad = torch.nonzero(~torch.isfinite(tensor))
    return SherryError(
        f"{name}: {len(bad)} weights are not finite, the first at {bad[0].tolist()}; "
        f"the checkpoint is damaged, save it again"
    )


def _chunked(chunked_type: Any, checkpoint: Checkpoint, name: str) -> Any:
    """A tensor that is stored as it is, as float32, some rows at a time while it is written: never all of it."""
    shape = checkpoint.info(name).shape
    step = max(1, _LARGE // math.prod(shape[1:]))
    held: list[torch.Tensor] = []

    def rows(start: int) -> Any:
        if start == 0:
            held[:] = [checkpoint.load(name)]
        (tensor,) = held
        part = floats(tensor[start : start + step])
        if not np.isfinite(part).all():
            raise _not_finite(name, tensor)
        if start + step >= shape[0]:
            held.clear()
        return part

    return chunked_type([partial(rows, start) for start in range(0, shape[0], step)], shape, np.float32)


def _lazy(lazy_type: Any, job: Job, name: str) -> Any:
    """The tensor as upstream wants it: a promise of known shape and dtype, kept when it is written."""
    info = job.checkpoint.info(name)
    layer = job.plan.layers.get(name)
    moved = job.plan.moved.get(name, ())
    if layer is None:
        dtype = torch.float32 if info.dtype == torch.bfloat16 else info.dtype
        meta = lazy_type.meta_with_dtype_and_shape(dtype, info.shape)
        lazy = lazy_type(meta=meta, args=(name,), func=lambda it: to_stride(_load_finite(job.checkpoint, it), moved))
        if (
            len(info.shape) > 1
            and math.prod(info.shape) > _LARGE
            and not moved
            and dtype in (torch.float32, torch.float16)
        ):
            lazy.large = name  # for what upstream leaves as it is
        return lazy
    meta = lazy_type.meta_with_dtype_and_shape(torch.float32, info.shape)
    return lazy_type(meta=meta, args=(name,), func=lambda it: to_stride(_load_baked(job, it, layer), moved))


def _lazy_bias(lazy_type: Any, job: Job, name: str) -> Any:
    """The bias of a layer of Tequila, as ``_lazy`` has tensors."""
    rule = job.plan.rule
    assert rule is not None
    meta = lazy_type.meta_with_dtype_and_shape(torch.float32, job.checkpoint.info(name).shape[:1])
    return lazy_type(meta=meta, args=(name,), func=lambda it: bias_of(job.checkpoint, it, rule))


def _load_baked(job: Job, name: str, layer: Layer) -> torch.Tensor:
    with naming(name):
        if layer.source == "calibrated":
            return job.calibrated[name]()
        weights, fp16_scales = job.checkpoint.load(name), not job.as_trained
        try:
            baked = bake(weights, layer, job.plan.granularity, fp16_scales=fp16_scales)
        except UnfitScales as error:
            # F32 can hold them: whoever stores the tensor in another type raises this
            job.unfit_scales.append(UnfitScales(f"{name}: {error.saw}", *error.ways))
            baked = bake(weights, layer, job.plan.granularity, fp16_scales=fp16_scales, strict=False)
        if layer.source in ("lossy", "rounded"):
            job.losses[name] = relative_error(weights, baked)
        return baked
