"""Where a checkpoint's tensors come from. Each store reads only what it returns."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.errors import SherryError, Way

INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Shape, as PyTorch has it, and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Store(Protocol):
    """Tensors by name."""

    def names(self) -> list[str]: ...
    def info(self, name: str) -> TensorInfo: ...
    def load(self, name: str) -> torch.Tensor: ...
    def head(self, name: str, rows: int) -> torch.Tensor: ...


class Safetensors:
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
        raise SherryError(f"{directory}: no model.safetensors", Way.STATE_DICT(other[0], directory))
    raise SherryError(f"{directory}: no model.safetensors in this directory; name a checkpoint's own")


_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def _require_all_parts(path: Path, names: set[str]) -> None:
    if part := _PART.search(path.name):
        for number in range(1, int(part[2]) + 1):
            name = f"{path.name[: part.start(1)]}{number:05}{path.name[part.end(1) :]}"
            if name not in names:
                raise SherryError(f"{path.parent}: the shard {name} is missing; download it again")


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = read_json(directory / INDEX).get("weight_map")
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


class StateDict:
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
