"""A model directory in and out of training: configuration, tokenizer, latents."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.declared import KV_CACHE_SCALES, is_quantizer_buffer
from sherry_gguf.checkpoint.regular import require_files
from sherry_gguf.checkpoint.remote_code import remote_code
from sherry_gguf.checkpoint.stores import NO_WEIGHTS
from sherry_gguf.checkpoint.wrappers import require_unwrapped, unwrapped
from sherry_gguf.errors import SherryError
from sherry_gguf.train.layers import convert_to_sherry

_TOKENIZER = ("*token*.json", "*.model", "vocab.*", "merges.txt", "chat_template*")
# what transformers reads weights from, the first that is there
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_GIT_LFS = b"version https://git-lfs"


def open_model(directory: Path) -> tuple[Any, Any]:
    """A directory -> a transformers causal LM in float32, its linear layers plain, and its tokenizer.

    With config.json and a tokenizer alone the weights are drawn as the architecture draws them. Code in it is not run.
    Raises SherryError for a directory that has neither, and for weights that are not all of the model and only those.
    """
    if not (directory / "config.json").is_file():
        raise SherryError(f"{directory}: no config.json; name a directory that has one, and a tokenizer")
    require_files(directory)
    _refuse_pointers(directory)
    with _loading(directory, "its configuration"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if not any(any(directory.glob(pattern)) for pattern in _TOKENIZER):
        raise SherryError(f"{directory}: no tokenizer; put the files of the model's own beside its config.json")
    with _loading(directory, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if any((directory / name).is_file() for name in _WEIGHTS):
        return _trained(directory), tokenizer
    if unread := next((path for path in sorted(directory.iterdir()) if _is_weights(path)), None):
        raise SherryError(
            f"{directory}: no {_WEIGHTS[0]}, and weights are not read from {unread.name}; "
            f"save them by that name, or take the file away to start from random weights"
        )
    with _loading(directory, "its model"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False), tokenizer


def _trained(directory: Path) -> Any:
    """The model with the directory's weights; SherryError if it has others, or lacks some: those would be random."""
    with _loading(directory, "its weights"):
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of, as the others are
        )
    unexpected = sorted(name for name in found["unexpected_keys"] if not is_quantizer_buffer(name))
    require_unwrapped(directory, unexpected)
    for names, fault in (
        (sorted(name for name, *_ in found["mismatched_keys"]), "have other sizes than config.json says"),
        (sorted(found["missing_keys"]), "of the model are missing"),
        (unexpected, "are none of the model that config.json describes"),
    ):
        if names:
            raise SherryError(f"{directory}: {len(names)} tensors {fault}, the first is {names[0]}")
    return model


def _is_weights(path: Path) -> bool:
    beside = path.name == KV_CACHE_SCALES or NO_WEIGHTS.fullmatch(path.name)
    return path.suffix in _WEIGHT_SUFFIXES and not beside


def _refuse_pointers(directory: Path) -> None:
    """Raise SherryError for a file that git cloned without git-lfs, of which there is a pointer alone."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_GIT_LFS):
            raise SherryError(f"{path}: is a pointer of git-lfs, not the file; get it with git lfs pull")


@contextmanager
def _loading(directory: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises, of any type and in any number of lines, into a SherryError.

    No code of the directory is executed meanwhile, and no question asked. A training has no flag that allows it.
    """
    try:
        with remote_code():
            yield
    except SherryError as error:
        raise SherryError(error.saw) from error
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise SherryError(f"{directory}: {what} cannot be loaded, {cause}") from error


def load_sherry(directory: Path) -> tuple[Any, Any]:
    """A saved Sherry checkpoint -> the model as it was trained, its layers SherryLinear, and its tokenizer."""
    checkpoint = Checkpoint(directory)
    granularity = checkpoint.declared_granularity()
    if granularity is None:
        raise SherryError(f"{directory}: config.json does not declare Sherry layers; convert_to_sherry makes some")
    model, tokenizer = open_model(directory)
    convert_to_sherry(model, granularity, checkpoint.declared_layers())
    return model.eval(), tokenizer


def save(model: Any, state: dict[str, Tensor], source: Path, directory: Path, dtype: torch.dtype) -> None:
    """Write ``state``, the model's tensors, rounded to dtype; its configuration; the tokenizer of ``source``."""
    state = {unwrapped(name): tensor for name, tensor in state.items()}
    model.save_pretrained(directory, state_dict=_rounded(model, state, dtype))
    config = copy.deepcopy(model.config)
    config.dtype, config.use_cache = dtype, True  # save_pretrained wrote those of the training
    config.save_pretrained(directory)
    copy_tokenizer(source, directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """The files as they are: transformers would write a form of its own, which llama.cpp's converter may not read."""
    for pattern in _TOKENIZER:
        for path in source.glob(pattern):
            shutil.copyfile(path, directory / path.name)


def _rounded(model: Any, state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every float tensor in dtype; names of one tensor, as of tied embeddings, stay names of one.

    The model knows which are: gathered from several processes, each name may have a tensor of its own.
    """
    parameters = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    once: dict[int, Tensor] = {}
    return {
        name: once.setdefault(parameters.get(name, tensor.data_ptr()), tensor.to(dtype))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }
