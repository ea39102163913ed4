"""Checkpoints made from others, with other weights in their Sherry layers, and silent about their training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

PROJECTION = re.compile(r"_proj\.weight$")
TRAINER_KEYS = ("w_bits", "quant_method", "granularity", "group_size", "N", "M")  # of config.json
FOREIGN = "<foreign>"  # a token of tokenizers that upstream's converter is not to know


def remake(source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor], **keys: object) -> Path:
    """A copy whose Sherry layers are change(name, weights); of the trainer's keys config.json has these only."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in TRAINER_KEYS} | keys
    (target / "config.json").write_text(json.dumps(config))
    state = load_file(target / "model.safetensors")
    state = {name: change(name, w) if PROJECTION.search(name) else w for name, w in state.items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def foreign_tokenizer(model: Path) -> Path:
    """The model, its byte-level BPE tokenizer being one that upstream's converter does not know."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([FOREIGN])
    tokenizer.save_pretrained(model)
    return model
