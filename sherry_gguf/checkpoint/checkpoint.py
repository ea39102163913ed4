"""A trained model on disk: its configuration, and its tensors one at a time.

Two shapes of checkpoint exist. The published trainer (AngelSlim, branch ``sherry``) saves a Hugging Face directory of
latent weights with the quantizer's settings in ``config.json``. AngelSlim's ``main`` saves baked (fake-quantized)
weights, as such a directory or as a bare torch state dict with no configuration beside it. BitNet's directories may
hold their matrices packed, which are seen here as if they were not.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sherry_gguf.checkpoint import declared
from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.checkpoint.packed import unpacked
from sherry_gguf.checkpoint.regular import is_file, require_files
from sherry_gguf.checkpoint.stores import StateDict, Store, TensorInfo, open_directory
from sherry_gguf.checkpoint.wrappers import require_unwrapped
from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.formats.groups import Grid
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.ternary import Rule


class Checkpoint:
    """A model directory, or a state dict with its configuration in another directory.

    directory  holds config.json and the tokenizer
    config     config.json as a dict
    ignored    names of stored tensors that are no weights (a fake quantizer's buffers)
    gains      names of those that are Tequila's gains of dead weights, which belong to layers
    beside     names of files beside the weights that say nothing of them (scales of a quantized cache)

    Raises SherryError for a file that is missing, damaged, or holds more than tensors.
    """

    def __init__(self, model: Path, config_dir: Path | None = None) -> None:
        if model.is_dir():
            self.directory = config_dir or model
            self._tensors: Store = open_directory(model)
        elif is_file(model):
            if config_dir is None:
                raise SherryError(f"{model} is a state dict, which has no configuration", Way.CONFIG_DIRECTORY)
            self.directory = config_dir
            self._tensors = StateDict(model)
        else:
            raise SherryError(f"{model}: no such file or directory")
        self.path = model
        self.config = read_json(self._config_file)
        with naming(str(model)):
            self._tensors = unpacked(self._tensors, self.config)
        require_files(self.directory)
        stored = self._tensors.names()
        self.ignored = [name for name in stored if declared.is_quantizer_buffer(name)]
        self.gains = [name for name in stored if name.endswith(declared.DEAD_GAIN)]
        self.names = [name for name in stored if name not in {*self.ignored, *self.gains}]
        require_unwrapped(model, self.names)
        shapes = {name: self.info(name).shape for name in self.names}
        declared.require_counts(self.config, self._config_file, shapes)
        self.beside = [name for name in (declared.KV_CACHE_SCALES,) if model.is_dir() and (model / name).is_file()]

    def info(self, name: str) -> TensorInfo:
        return self._tensors.info(name)

    def load(self, name: str) -> torch.Tensor:
        """The tensor in the dtype that it is stored in."""
        return self._tensors.load(name)

    def head(self, name: str, rows: int) -> torch.Tensor:
        """The first rows (along the first axis) of a tensor."""
        return self._tensors.head(name, rows)

    def declared_granularity(self) -> Granularity | None:
        """What the checkpoint says of Sherry's scales, None where it says nothing of quantization.

        Raises SherryError where it tells of another method, or is incomplete.
        """
        found = declared.granularity(self.config, self._config_file)
        if found is None:
            declared.require_no_other_method(self._saved_to, self.ignored, self.load)
        return found

    def declared_rule(self) -> Rule | None:
        """How the checkpoint says that its latents become dense ternary weights; None where it says nothing of such.

        Raises SherryError for incomplete settings.
        """
        return declared.dense_rule(self.config, self._config_file, self._saved_to)

    def dead_gains(self, weight: str) -> torch.Tensor | None:
        """[rows, k]: what the dead weights of a layer are multiplied with, where it has a tensor for that."""
        name = weight.removesuffix(".weight") + declared.DEAD_GAIN
        return self.load(name) if name in self.gains else None

    def declared_grid(self) -> Grid:
        """Which weights make a group; SherryError for a key that names no grid."""
        return declared.grid(self.config, self._config_file)

    def declared_layers(self) -> str:
        """The regex of the quantized layers' names; SherryError where that is no regular expression."""
        return declared.layers(self.config, self._config_file)

    @property
    def _saved_to(self) -> Path:
        """The trainer's output directory: AngelSlim puts ``<directory>_fake_quant_model.pt`` beside it."""
        if self.path.is_dir():
            return self.path
        return self.path.with_name(self.path.name.removesuffix("_fake_quant_model.pt"))

    @property
    def _config_file(self) -> Path:
        return self.directory / "config.json"
