"""A checkpoint, and what its user says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sherry_gguf.checkpoint.checkpoint import Checkpoint
from sherry_gguf.formats.groups import Grid
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.ternary import Method


@dataclass(frozen=True)
class Source:
    """How a checkpoint is read. What is None is taken from config.json, or seen in baked weights.

    model          a directory, or a state dict with ``config_dir``
    granularity    declares latent weights to be Sherry's, or those of ``method``
    sherry_layers  regex of the checkpoint's names of the quantized linear layers
    grid           of latent weights
    method         how weights become dense ternary (``weights/ternary.py``): its latents, or such weights themselves
    allow_lossy    quantize weights that are not Sherry's all the same, which changes them

    trust_remote_code  execute Python files of the model where transformers needs them (``checkpoint/remote_code.py``)
    """

    model: Path
    config_dir: Path | None = None
    granularity: Granularity | None = None
    sherry_layers: str | None = None
    grid: Grid | None = None
    allow_lossy: bool = False
    trust_remote_code: bool = False
    method: Method | None = None

    def open(self) -> Checkpoint:
        """Raises SherryError for a file that is missing, damaged, or holds more than tensors."""
        return Checkpoint(self.model, self.config_dir)
