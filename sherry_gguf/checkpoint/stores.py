"""Where a checkpoint's tensors come from. Each store reads only what it returns."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.checkpoint.regular import is_file
from sherry_gguf.errors import SherryError, Way

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"


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


def open_directory(directory: Path) -> Store:
    """The tensors of a directory, from the file that transformers' from_pretrained would read, or its one state dict.

    Raises SherryError for a directory that has no whole weights, or several of which none comes first.
    """
    if shards := _shards(directory):
        return Safetensors(shards)
    return StateDict(_state_dict(directory))


class Safetensors:
    """``model.safetensors`` or its shards.

    What safetensors maps, another program may truncate, which kills whoever looks at it. It only checks the header;
    the tensors are read.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._where: dict[str, _Shard] = {}
        for path in shards:
            with _reading(path):
                shard = _Shard(path)
            for name in sorted(shard.entries):  # whatever order the file has them in
                if name in self._where:
                    raise SherryError(f"{path}: tensor {name} is in {self._where[name].path.name} too; remove one file")
                self._where[name] = shard
        if shards[0].name != SINGLE or _index_names(shards[0].parent) == {SINGLE}:
            _compare_with_index(shards[0].parent, set(self._where))

    def names(self) -> list[str]:
        return list(self._where)

    def info(self, name: str) -> TensorInfo:
        shard = self._where[name]
        entry = shard.entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise SherryError(f"{shard.path}: tensor {name} has dtype {entry['dtype']}; save it as F32, F16 or BF16")
        return TensorInfo(tuple(entry["shape"]), dtype)

    def load(self, name: str) -> torch.Tensor:
        return self._read(name, self.info(name).shape)

    def head(self, name: str, rows: int) -> torch.Tensor:
        first, *others = self.info(name).shape
        return self._read(name, (min(first, rows), *others))

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The first weights of a tensor, as many as the shape has."""
        shard = self._where[name]
        dtype = self.info(name).dtype
        content = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        with _reading(shard.path):
            shard.read(content.numpy(), shard.entries[name]["data_offsets"][0])
        return content.view(dtype).reshape(shape)


class _Shard:
    """An open safetensors file. entries: tensor name -> what the header says of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="np"):  # the entries lie in the file side by side, none of them beyond its end
            self._file = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        self._data = 8 + length
        self.entries: dict[str, Any] = json.loads(self._file.read(length), object_pairs_hook=_once)
        self.entries.pop("__metadata__", None)

    def read(self, into: npt.NDArray[np.uint8], offset: int) -> None:
        """Fill ``into`` from this offset of the data. OSError for a file that became shorter."""
        position, view = self._data + offset, into.data
        while view:
            count = os.preadv(self._file.fileno(), [view], position)
            if not count:
                raise OSError("it became shorter while it was read")
            position, view = position + count, view[count:]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different: libraries take the last of several in silence."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise SafetensorError(f"its header has {name} twice")
        found[name] = value
    return found


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
    """The safetensors files that hold the weights: ``model.safetensors``, else what the index names. None: []."""
    single = is_file(directory / SINGLE)
    if names := _index_names(directory):
        beside = sorted(name for name in names - {SINGLE} if is_file(directory / name))
        if single and beside:
            raise SherryError(
                f"{directory}: holds two sets of weights, {SINGLE} and the shards of {INDEX}, as {beside[0]}; "
                f"remove one of them"
            )
        if not single or SINGLE in names:
            for name in sorted(names):
                if not is_file(directory / name):
                    raise SherryError(f"{directory}: the shard {name} is missing; download it again")
            return [directory / name for name in sorted(names)]
    if single:
        return [directory / SINGLE]
    found = sorted(path for path in directory.glob("model*.safetensors") if is_file(path))
    for path in found:
        _require_all_parts(path, {other.name for other in found})
    return found


# What trainers write beside weights, and what is no model's.
NO_WEIGHTS = re.compile(r"(rng_state.*|optimizer.*|scheduler|scaler|training_args|random_states.*)\.(pt|pth|bin|pkl)")


def _state_dict(directory: Path) -> Path:
    """The one torch state dict of a directory without safetensors."""
    files = [path for ending in ("bin", "pt", "pth") for path in sorted(directory.glob(f"*.{ending}"))]
    found = [path for path in files if not NO_WEIGHTS.fullmatch(path.name)]
    if any(_PART.search(path.name) for path in found):
        raise SherryError(f"{directory}: is a sharded torch checkpoint; save it as safetensors (save_pretrained)")
    if len(found) == 1:
        return found[0]
    if found:
        raise SherryError(
            f"{directory}: no {SINGLE}, and {len(found)} state dicts, {' and '.join(path.name for path in found[:2])}",
            Way.STATE_DICT(found[0], directory),
        )
    _require_no_training(directory)
    if files:
        raise SherryError(f"{directory}: no {SINGLE}; {files[0].name} is a trainer's state and holds no weights")
    raise SherryError(f"{directory}: no {SINGLE} in this directory; name a checkpoint's own")


def _require_no_training(directory: Path) -> None:
    """Raise SherryError for what a training on several devices leaves, if that is not merged."""
    parts = next(iter(sorted([*directory.glob("pytorch_model_fsdp_*"), *directory.glob("*.distcp")])), None)
    if parts is not None:
        where = parts if parts.is_dir() else directory
        raise SherryError(
            f"{directory}: holds the parts of an FSDP training, no whole weights; merge them first "
            f"(accelerate merge-weights {where} OUTPUT), and put config.json and the tokenizer beside the result"
        )
    if (directory / "zero_to_fp32.py").exists() or any(directory.glob("global_step*")):
        raise SherryError(
            f"{directory}: holds the parts of a DeepSpeed ZeRO training, no whole weights; merge them first "
            f"(python zero_to_fp32.py . OUTPUT, in this directory), and put config.json and the tokenizer beside the "
            f"result"
        )
    if any(directory.glob("rng_state_*.pth")):
        raise SherryError(
            f"{directory}: holds the state of a training on several devices, and no weights; save the whole model "
            f"(save_model of its trainer), or name the directory that has it"
        )


_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def _require_all_parts(path: Path, names: set[str]) -> None:
    if part := _PART.search(path.name):
        for number in range(1, int(part[2]) + 1):
            name = f"{path.name[: part.start(1)]}{number:05}{path.name[part.end(1) :]}"
            if name not in names:
                raise SherryError(f"{path.parent}: the shard {name} is missing; download it again")


def _index_names(directory: Path) -> set[str]:
    """The files that the index names, none where there is no index; nor for a damaged one beside one whole file, which
    is read without it, by transformers too."""
    if not is_file(directory / INDEX):
        return set()
    try:
        names = set(_weight_map(directory).values())
    except SherryError:
        if is_file(directory / SINGLE):
            return set()
        raise
    for name in names:
        # An index is data from elsewhere: it must not lead out of the directory.
        if Path(name).name != name or name in ("", ".."):
            raise SherryError(f"{directory / INDEX}: {name!r} is not the name of a file in this directory")
    return names


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise SherryError(f"{directory / INDEX}: has no weight_map of names; download it again")
    return weight_map


def _compare_with_index(directory: Path, found: set[str]) -> None:
    if not is_file(directory / INDEX):
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
        if not is_file(path):
            raise SherryError(f"{path}: no such file or directory")
        state = _load_tensors(path)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise SherryError(f"{path}: is not a flat dict of tensors; save the model's state_dict() alone")
        for name, tensor in state.items():
            if not isinstance(name, str):
                raise SherryError(f"{path}: has the key {name!r}, which names no tensor; save the model's state_dict()")
            if (what := _unreadable(tensor)) is not None:
                raise SherryError(f"{path}: tensor {name} is {what}; save it dense, as F32, F16 or BF16")
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


def _load_tensors(path: Path) -> Any:
    """What the file holds. Raises SherryError for a damaged file, and for one that holds code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells of what it will drop, which is nothing to the reader
            # only the zip format, torch's own since 1.6, can be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise SherryError(f"{path}: cannot be read as a torch state dict; download or save it again") from error
        raise SherryError(
            f"{path}: holds more than tensors, and loading that could run code; save the model's state_dict() alone"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises whatever comes up in a file's bytes
        first_line = (str(error).splitlines() or ["unexpected end"])[0]
        raise SherryError(f"{path}: cannot be read as a torch state dict, {first_line}") from error


def _unreadable(tensor: torch.Tensor) -> str | None:
    """What a tensor is whose values cannot be read as a matrix, None for a plain one."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized by torch"
    return "a meta tensor, which has no values" if tensor.is_meta else None
