"""A directory that PEFT saved a LoRA to: its settings, its tensors, and a copy of it with other weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.errors import SherryError, Way

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What llama.cpp's adapters do not have: it adds alpha / r * B A to a matrix, with one alpha for all.
_NOT_THERE = {
    "use_dora": "magnitudes of DoRA",
    "use_rslora": "the scale of rank-stabilized LoRA",
    "alpha_pattern": "an alpha of its own for some layers",
    "modules_to_save": "whole layers beside the LoRA",
}


@dataclass(frozen=True)
class Lora:
    """directory: of PEFT's; base: the directory of the model that it was trained on."""

    directory: Path
    base: Path
    settings: dict[str, object]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> A float32[r, n_in] or B float32[n_out, r]. SherryError for a file that is damaged."""
        path = self.directory / WEIGHTS
        try:
            return {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise SherryError(f"{path}: cannot be read, {' '.join(str(error).split())}") from error

    def copy(self, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
        """The same LoRA with other tensors, in a new directory inside ``folder``, named as the old one."""
        directory = folder / self.directory.resolve().name
        directory.mkdir()
        shutil.copyfile(self.directory / CONFIG, directory / CONFIG)
        save_file(tensors, directory / WEIGHTS)
        return directory


def open_lora(directory: Path, base: Path | None) -> Lora:
    """base: default what adapter_config.json names. SherryError for what llama.cpp could not compute."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise SherryError(f"{directory}: has no {name}, as PEFT saves a LoRA")
    settings = read_json(directory / CONFIG)
    if settings.get("peft_type") != "LORA":
        raise SherryError(f"{directory}: is {settings.get('peft_type')!r}, not LORA")
    for key, what in _NOT_THERE.items():
        if settings.get(key):
            raise SherryError(f"{directory}: has {what} ({key}), which llama.cpp's adapters do not have")
    base = base or Path(str(settings.get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise SherryError(f"{base}: the LoRA's base model is not there", Way.BASE)
    return Lora(directory, base, settings)
