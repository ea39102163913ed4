"""A model directory in and out of training: configuration, tokenizer, latents."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.wrappers import unwrapped
from sherry_gguf.errors import SherryError
from sherry_gguf.train.layers import convert_to_sherry

_TOKENIZER = ("*token*.json", "*.model", "vocab.*", "merges.txt", "chat_template*")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def open_model(directory: Path) -> tuple[Any, Any]:
    """A directory -> a transformers causal LM in float32, its linear layers plain, and its tokenizer.

    With config.json and a tokenizer alone the weights are drawn as the architecture draws them. Code in it is not run.
    """
    if not (directory / "config.json").is_file():
        raise SherryError(f"{directory}: no config.json; name a directory that has one, and a tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False), tokenizer
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False), tokenizer


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
    model.save_pretrained(directory, state_dict=_rounded(state, dtype))
    config = copy.deepcopy(model.config)
    config.dtype, config.use_cache = dtype, True  # save_pretrained wrote those of the training
    config.save_pretrained(directory)
    copy_tokenizer(source, directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """The files as they are: transformers would write a form of its own, which llama.cpp's converter may not read."""
    for pattern in _TOKENIZER:
        for path in source.glob(pattern):
            shutil.copyfile(path, directory / path.name)


def _rounded(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every float tensor in dtype; names of one tensor, as of tied embeddings, stay names of one."""
    once: dict[int, Tensor] = {}
    return {
        name: once.setdefault(tensor.data_ptr(), tensor.to(dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
