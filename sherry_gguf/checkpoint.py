"""A trained model on disk: its configuration, and its tensors one at a time.

Two shapes of checkpoint exist. The published trainer (AngelSlim, branch ``sherry``) saves a Hugging Face directory of
latent weights with the quantizer's settings in ``config.json``. AngelSlim's ``main`` saves baked (fake-quantized)
weights, as such a directory or as a bare torch state dict with no configuration beside it.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open

from sherry_gguf.errors import SherryError, naming
from sherry_gguf.groups import GROUPS, Groups
from sherry_gguf.quantize import Granularity

INDEX = "model.safetensors.index.json"

# The linear layers of a decoder block, as the architectures that Sherry is trained on name them, dense or expert.
SHERRY_LAYERS = (
    r"\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|experts\.\d+\.w[123])"
    r"(\.weight)?$"
)

# Buffers of AngelSlim's fake quantizers. Their `scale` stays 1.0: the magnitudes are in the weights themselves.
_QUANTIZER_BUFFER = ("weight_quantizer.", "input_quantizer.")


@dataclass(frozen=True)
class TensorInfo:
    """Shape, as PyTorch has it, and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Tensors(Protocol):
    """Where tensors come from: each method reads only what it returns."""

    def names(self) -> list[str]: ...
    def info(self, name: str) -> TensorInfo: ...
    def load(self, name: str) -> torch.Tensor: ...
    def head(self, name: str, rows: int) -> torch.Tensor: ...


class Checkpoint:
    """A model directory, or a state dict with its configuration in another directory.

    directory  holds config.json and the tokenizer
    config     config.json as a dict
    ignored    names of stored tensors that are no weights (a fake quantizer's buffers)

    Raises SherryError for a file that is missing, damaged, or holds more than tensors.
    """

    def __init__(self, model: Path, config_dir: Path | None = None) -> None:
        if model.is_dir():
            self.directory = config_dir or model
            self._tensors: _Tensors = _Safetensors(model)
        elif model.is_file():
            if config_dir is None:
                raise SherryError(
                    f"{model} is a state dict, which has no configuration: "
                    f"name the directory that has config.json and the tokenizer (--config DIR)"
                )
            self.directory = config_dir
            self._tensors = _StateDict(model)
        else:
            raise SherryError(f"{model}: no such file or directory")
        self.path = model
        self.config = _read_json(self.directory / "config.json")
        stored = self._tensors.names()
        self.ignored = [name for name in stored if any(part in name for part in _QUANTIZER_BUFFER)]
        self.names = [name for name in stored if name not in set(self.ignored)]

    def info(self, name: str) -> TensorInfo:
        return self._tensors.info(name)

    def load(self, name: str) -> torch.Tensor:
        """The tensor as it is stored: its dtype, no copy where the file can be mapped."""
        return self._tensors.load(name)

    def head(self, name: str, rows: int) -> torch.Tensor:
        """The first rows (along the first axis) of a tensor."""
        return self._tensors.head(name, rows)

    def declared_granularity(self) -> Granularity | None:
        """What config.json says of Sherry's scales, None where it says nothing of quantization.

        The keys are the published trainer's: ``quant_method``, ``N``, ``M``, ``granularity``, ``group_size``.
        Raises SherryError where they name another method, or are incomplete.
        """
        method = self.config.get("quant_method")
        if method is None:
            return None
        with naming(str(self.directory / "config.json")):
            if method != "sherry":
                raise SherryError(
                    f"quant_method is {method!r}, not 'sherry': dense ternary weights fit TQ2_0 or TQ1_0 "
                    f"(llama.cpp's convert_hf_to_gguf.py --outtype tq2_0)"
                )
            sparsity = self.config.get("N", 3), self.config.get("M", 4)
            if sparsity != (3, 4):
                raise SherryError(f"the sparsity is {sparsity[0]}:{sparsity[1]}; SHERRY holds 3:4 only")
            return parse_granularity(self.config.get("granularity"), self.config.get("group_size"))

    def declared_groups(self) -> Groups:
        """Which weights make a group: neighbours, as the published trainer has it, or config.json's ``sherry_grid``.

        Raises SherryError for a key that names neither kind.
        """
        groups = self.config.get("sherry_grid", "consecutive")
        if groups not in GROUPS:
            raise SherryError(
                f"{self.directory / 'config.json'}: sherry_grid is {groups!r}, none of {', '.join(GROUPS)} (--grid)"
            )
        return cast(Groups, groups)

    def declared_layers(self) -> str:
        """The regex of the quantized layers' names: SHERRY_LAYERS, or config.json's own key ``sherry_layers``.

        Raises SherryError where that is no regular expression.
        """
        layers = self.config.get("sherry_layers", SHERRY_LAYERS)
        with naming(str(self.directory / "config.json")):
            if not isinstance(layers, str):
                raise SherryError(f"sherry_layers is {layers!r}, not a regular expression")
            return check_regex(layers)


def check_regex(pattern: str) -> str:
    """The pattern itself; SherryError if it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise SherryError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


def parse_granularity(kind: object, group_size: object = None) -> Granularity:
    """``per_group`` with a group size, ``per_channel`` or ``per_tensor``; SherryError for anything else."""
    if kind == "per_group":
        if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size <= 0:
            raise SherryError(f"per_group needs a positive group size, got {group_size!r} (--group-size)")
        return Granularity("per_group", group_size)
    if kind == "per_channel" or kind == "per_tensor":
        return Granularity(kind)
    raise SherryError(f"granularity {kind!r} is none of per_group, per_channel, per_tensor (--granularity)")


class _Safetensors:
    """``model.safetensors`` or its shards."""

    def __init__(self, directory: Path) -> None:
        self._where: dict[str, tuple[Path, Any]] = {}
        for path in _shards(directory):
            with _reading(path):
                shard = safe_open(path, framework="pt")
            for name in shard.keys():  # noqa: SIM118 - a safe_open is no dict
                if name in self._where:
                    raise SherryError(f"{path}: tensor {name} is in {self._where[name][0].name} too; remove one file")
                self._where[name] = path, shard
        _compare_with_index(directory, set(self._where))

    def names(self) -> list[str]:
        return list(self._where)

    def info(self, name: str) -> TensorInfo:
        path, shard = self._where[name]
        view = shard.get_slice(name)
        dtype = _DTYPES.get(view.get_dtype())
        if dtype is None:
            raise SherryError(f"{path}: tensor {name} has dtype {view.get_dtype()}; save it as F32, F16 or BF16")
        return TensorInfo(tuple(view.get_shape()), dtype)

    def load(self, name: str) -> torch.Tensor:
        path, shard = self._where[name]
        with _reading(path):
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor

    def head(self, name: str, rows: int) -> torch.Tensor:
        path, shard = self._where[name]
        with _reading(path):
            tensor: torch.Tensor = shard.get_slice(name)[:rows]
        return tensor


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a SherryError that names it."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise SherryError(f"{path}: cannot be read, {error}; download or save it again") from error


def _shards(directory: Path) -> list[Path]:
    single = directory / "model.safetensors"
    if (directory / INDEX).is_file():
        names = sorted(set(_weight_map(directory).values()))
        for name in names:
            # An index is data from elsewhere: it must not lead out of the directory.
            if Path(name).name != name:
                raise SherryError(f"{directory / INDEX}: {name!r} is not the name of a file in this directory")
            if not (directory / name).is_file():
                raise SherryError(f"{directory}: the shard {name} is missing; download it again")
        return [directory / name for name in names]
    if single.is_file():
        return [single]
    found = sorted(directory.glob("model*.safetensors"))
    if found:
        for path in found:
            _require_all_parts(path, {other.name for other in found})
        return found
    other = sorted([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")])
    if any(_PART.search(path.name) for path in other):
        raise SherryError(f"{directory}: is a sharded torch checkpoint; save it as safetensors (save_pretrained)")
    if other:
        raise SherryError(
            f"{directory}: no model.safetensors; to convert the state dict, "
            f"name the file itself: {other[0]} --config {directory}"
        )
    raise SherryError(f"{directory}: no model.safetensors in this directory; name a checkpoint's own")


_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def _require_all_parts(path: Path, names: set[str]) -> None:
    if part := _PART.search(path.name):
        for number in range(1, int(part[2]) + 1):
            name = f"{path.name[: part.start(1)]}{number:05}{path.name[part.end(1) :]}"
            if name not in names:
                raise SherryError(f"{path.parent}: the shard {name} is missing; download it again")


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise SherryError(f"{directory / INDEX}: has no weight_map of names; download it again")
    return weight_map


def _compare_with_index(directory: Path, found: set[str]) -> None:
    if not (directory / INDEX).is_file():
        return
    missing = sorted(set(_weight_map(directory)) - found)
    if missing:
        raise SherryError(
            f"{directory}: {len(missing)} tensors of {INDEX} are in no shard, the first is {missing[0]}; "
            f"download the checkpoint again"
        )


class _StateDict:
    """A torch state dict (``*.pt``, ``*.bin``): tensors and nothing else."""

    def __init__(self, path: Path) -> None:
        try:
            # only the zip format, torch's own since 1.6, can be mapped
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            raise SherryError(
                f"{path}: holds more than tensors, and loading that could run code; save the model's state_dict() alone"
            ) from error
        except (RuntimeError, OSError, EOFError) as error:
            first_line = (str(error).splitlines() or ["unexpected end"])[0]
            raise SherryError(f"{path}: cannot be read as a torch state dict, {first_line}") from error
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise SherryError(f"{path}: is not a flat dict of tensors; save the model's state_dict() alone")
        self._state: dict[str, torch.Tensor] = state

    def names(self) -> list[str]:
        return list(self._state)

    def info(self, name: str) -> TensorInfo:
        tensor = self._state[name]
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def load(self, name: str) -> torch.Tensor:
        return self._state[name].detach()

    def head(self, name: str, rows: int) -> torch.Tensor:
        return self._state[name][:rows].detach()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SherryError(f"{path}: no such file; a checkpoint directory needs it") from None
    except (OSError, ValueError) as error:
        raise SherryError(f"{path}: cannot be read, {error}") from error
    if not isinstance(value, dict):
        raise SherryError(f"{path}: is not a JSON object")
    return value
