"""Upstream's converter of an architecture, with Sherry layers baked on their way in.

``conversion/`` of the pinned llama.cpp maps names, permutes, stacks experts, and writes tokenizers and parameters. It
is driven through the methods that its own architectures override; nothing of it is rewritten here.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sherry_gguf import stq1_0
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.convert.bake import bake, relative_error
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.types import OUTPUT, TOKEN_EMBEDDING, TypeChoice, has_choice
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.format import TYPE_NAME, VERSION, VERSION_KEY
from sherry_gguf.regrid import EXACT, to_stride
from sherry_gguf.regrid import KEY as REGRID_KEY

LM_HEAD = "lm_head.weight"


@dataclass
class Job:
    """One run of upstream's converter: what goes in, and what was lost on the way (layer -> relative error).

    sherry_types: GGUF name -> type of the Sherry tensors that are not SHERRY, and for which nobody chose a type
    as_trained: leave alpha unrounded and every tensor F32, to compare a written file with
    """

    checkpoint: Checkpoint
    plan: Plan
    types: TypeChoice
    sherry_types: Mapping[str, str] = field(default_factory=dict)
    as_trained: bool = False
    losses: dict[str, float] = field(default_factory=dict)


def open_model(job: Job, outfile: Path, model_name: str | None = None, metadata: Path | None = None) -> Any:
    """An instance of upstream's ModelBase for this checkpoint's architecture. Its weights are lazy: none is read.

    Needs llama_cpp.use_pinned_gguf() first. Raises SherryError for an architecture that upstream does not know.
    """
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").addFilter(_is_news)
    hparams = ModelBase.load_hparams(job.checkpoint.directory, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        base = get_model_class(architecture)
    except NotImplementedError:
        raise SherryError(f"{job.checkpoint.path}: llama.cpp's converter does not know {architecture}") from None
    return _sherry_class(base, job)(
        job.checkpoint.directory,
        _file_type_of_plain_weights(gguf, job),
        outfile,
        model_name=model_name,
        metadata_override=metadata,
    )


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
        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
            self.layers: set[str] = set()  # by upstream's name, which may be a little different
            tensors: dict[str, Callable[[], Any]] = {}
            for name in job.checkpoint.names:
                if name == LM_HEAD and self.hparams.get("tie_word_embeddings"):
                    continue  # a copy that PyTorch does not use either
                if kept := self.filter_tensors((name, partial(_lazy, LazyTorchTensor, job, name))):
                    tensors[kept[0]] = kept[1]
                    if name in job.plan.layers:
                        self.layers.add(kept[0])
            return tensors

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
            tensors: Iterable[tuple[str, Any]] = super().modify_tensors(data_torch, name, bid)
            for new_name, tensor in tensors:
                yield new_name, tensor
                tied = self.hparams.get("tie_word_embeddings")
                if new_name == TOKEN_EMBEDDING and tied and job.types.separate_output():
                    yield OUTPUT, tensor

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            is_sherry = name in self.layers
            chosen = None
            if has_choice(new_name, n_dims):
                self.with_choice.append(new_name)
                chosen = job.types.for_tensor(new_name, is_sherry=is_sherry)
            if is_sherry:
                self.on_grid.add(new_name)
            if chosen == TYPE_NAME:
                self.exact.add(new_name)
                chosen = job.sherry_types.get(new_name, TYPE_NAME)
            if job.as_trained:
                return gguf.GGMLQuantizationType.F32
            if chosen is None:
                return super().tensor_force_quant(name, new_name, bid, n_dims)
            self.chosen[new_name] = gguf.GGMLQuantizationType[chosen.upper()]
            return self.chosen[new_name]

        def prepare_tensors(self) -> None:
            self.chosen: dict[str, Any] = {}
            self.on_grid: set[str] = set()
            self.exact: set[str] = set()  # of these, the tensors that nobody chose another type for
            self.with_choice: list[str] = []
            super().prepare_tensors()
            stored = {name: info.dtype for part in self.gguf_writer.tensors for name, info in part.items()}
            require_whole_blocks(stored, self.block_count)
            job.types.require_matches(self.with_choice)
            for name, wanted in self.chosen.items():
                # Upstream warns and falls back to F16 where a row does not fit; here nothing falls back.
                if stored[name] != wanted:
                    row = self.gguf_writer.tensors[0][name].shape[-1]
                    size = gguf.GGML_QUANT_SIZES[wanted][0]
                    raise SherryError(
                        f"{name}: rows of {row} weights are no multiple of {size}, which {wanted.name} needs; "
                        f"choose another type for it (--tensor-type, --token-embedding-type, --output-tensor-type)"
                    )
            if job.plan.moved:
                self.gguf_writer.add_string(REGRID_KEY, EXACT)
            if self.exact and not job.as_trained:
                # as upstream names a file by the type of most tensors; first go those that not every reader has
                counts = Counter(stored[name].name for name in self.exact)
                rare = [name for name in (TYPE_NAME, stq1_0.TYPE_NAME) if name in counts]
                main = rare[0] if rare else counts.most_common(1)[0][0]
                self.ftype = gguf.LlamaFileType[f"MOSTLY_{main}"]
                if TYPE_NAME in counts:
                    self.gguf_writer.add_uint32(VERSION_KEY, VERSION)

    return SherryModel


# The matrices of a decoder block; what else is in one differs between the layers of some architectures.
_LINEAR = re.compile(r"^(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps)?)\.weight$")


def require_whole_blocks(names: Iterable[str], block_count: int) -> None:
    """Raise SherryError if a block has no tensors, or lacks a matrix that a block alike has: a checkpoint in parts."""
    blocks: dict[int, set[str]] = {number: set() for number in range(block_count)}
    for name in names:
        if name.startswith("blk."):
            _, index, rest = name.split(".", 2)
            blocks.setdefault(int(index), set()).add(rest)
    for number, found in blocks.items():
        # hybrid layers and dense layers among experts have other tensors, not fewer of the same
        lacking = {name for other in blocks.values() if found < other for name in other - found if _LINEAR.search(name)}
        if not found or lacking:
            what = min(lacking) if found else "any tensor"
            raise SherryError(
                f"the checkpoint is not complete: layer {number} of {block_count} lacks {what}; download it again"
            )


def _load_finite(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor that is stored as it is. Raises SherryError for NaN and infinities, which no type should hold."""
    tensor = checkpoint.load(name)
    if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
        bad = torch.nonzero(~finite)
        raise SherryError(
            f"{name}: {len(bad)} weights are not finite, the first at {bad[0].tolist()}; "
            f"the checkpoint is damaged, save it again"
        )
    return tensor


def _lazy(lazy_type: Any, job: Job, name: str) -> Any:
    """The tensor as upstream wants it: a promise of known shape and dtype, kept when it is written."""
    info = job.checkpoint.info(name)
    layer = job.plan.layers.get(name)
    moved = job.plan.moved.get(name, ())
    if layer is None:
        meta = lazy_type.meta_with_dtype_and_shape(info.dtype, info.shape)
        return lazy_type(meta=meta, args=(name,), func=lambda it: to_stride(_load_finite(job.checkpoint, it), moved))

    def load_baked(name: str) -> torch.Tensor:
        with naming(name):
            weights = job.checkpoint.load(name)
            baked = bake(weights, layer, job.plan.granularity, fp16_scales=not job.as_trained)
            if layer.source == "lossy":
                job.losses[name] = relative_error(weights, baked)
            return to_stride(baked, moved)

    meta = lazy_type.meta_with_dtype_and_shape(torch.float32, info.shape)
    return lazy_type(meta=meta, args=(name,), func=load_baked)
