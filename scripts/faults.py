"""Conversions that go wrong: each fault with what makes it, and what our converter says to it.

``tests/faults`` holds our converter to them; ``fault_table.py`` does the same to upstream's, and prints both.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
SHARDS: Final = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NORM: Final = "model.norm.weight"
EMBEDDING: Final = "model.embed_tokens.weight"
LAYER: Final = "model.layers.0.mlp.down_proj.weight"
OLD: Final = b"what was there before\n" * 1000

MIB: Final = 1 << 20


@dataclass
class Place:
    """A conversion that a fault changes before it starts.

    model     a folder of its own, whole at first
    outfile   an older output is there
    flags     of our converter
    limits    RLIMIT_.. -> bytes for the process; of memory, bytes more than the process has by then
    """

    model: Path
    outfile: Path
    flags: list[str] = field(default_factory=lambda: ["--force"])
    limits: dict[int, int] = field(default_factory=dict)

    @property
    def canary(self) -> Path:
        """What is here at the end was made by code of the input."""
        return self.model.parent / "canary"


@dataclass(frozen=True)
class Fault:
    """name: a row of the table. said: a regex of what our converter says; None where the result must be right."""

    name: str
    make: Callable[[Place], None]
    said: str | None


def small_model(source: Path, target: Path) -> Path:
    """A copy of the checkpoint that keeps two layers of several."""
    shutil.copytree(source, target)
    state = {
        name: tensor
        for name, tensor in load_file(source / SINGLE).items()
        if ".layers." not in name or re.search(r"\.layers\.[01]\.", name)
    }
    save_file(state, target / SINGLE, metadata={"format": "pt"})
    edit_config(target, num_hidden_layers=2)
    return target


def new_place(model: Path, folder: Path) -> Place:
    """A place in an empty folder: a copy of the model, and an older output in a folder that has nothing else."""
    shutil.copytree(model, folder / "model")
    (folder / "out").mkdir()
    place = Place(folder / "model", folder / "out" / "x.gguf")
    place.outfile.write_bytes(OLD)
    return place


# What faults are made of


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(model: Path, *, twice: str | None = None) -> dict[str, str]:
    """Put the weights into two shards and give their index's weight_map. twice: a tensor that is in both."""
    state = load_file(model / SINGLE)
    names = sorted(state)
    parts = dict(zip(SHARDS, (names[:5], names[5:]), strict=True))
    for name, members in parts.items():
        save_file({m: state[m] for m in {*members, *filter(None, [twice])}}, model / name, metadata={"format": "pt"})
    weight_map = {member: name for name, members in parts.items() for member in members}
    write_index(model, weight_map)
    (model / SINGLE).unlink()
    return weight_map


def write_index(model: Path, weight_map: dict[str, str]) -> None:
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the data after it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_file(path: Path, header: dict[str, Any] | str, data: bytes, length: int | None = None) -> None:
    """Write a safetensors file. length: what it says of its header's, if that is not so."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def header_changed(change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any] | str, bytes]]) -> Callable:
    def make(place: Place) -> None:
        path = place.model / SINGLE
        join_file(path, *change(*split_file(path)))

    return make


def entry_changed(name: str, **changes: Any) -> Callable:
    def change(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        header[name] |= changes
        return header, data

    return header_changed(change)


def tensor_changed(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable:
    """A tensor replaced; by None, removed."""

    def make(place: Place) -> None:
        path = place.model / SINGLE
        state = load_file(path)
        changed = change(state.pop(name))
        state |= {} if changed is None else {name: changed}
        save_file(state, path, metadata={"format": "pt"})

    return make


def value_set(name: str, index: tuple[int, ...], value: float) -> Callable:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return tensor_changed(name, change)


def config_changed(**changes: Any) -> Callable:
    return lambda place: edit_config(place.model, **changes)


def config_text(text: str) -> Callable:
    def make(place: Place) -> None:
        (place.model / "config.json").write_text(text)

    return make


def removed(*names: str) -> Callable:
    def make(place: Place) -> None:
        for name in names:
            (place.model / name).unlink()

    return make


def index_leads_to(where: Callable[[Place], str]) -> Callable:
    """An index whose second shard is elsewhere: whole, beside the model."""

    def make(place: Place) -> None:
        weight_map = shard(place.model)
        shutil.move(place.model / SHARDS[1], place.model.parent / SHARDS[1])
        write_index(place.model, {k: where(place) if v == SHARDS[1] else v for k, v in weight_map.items()})

    return make


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


# The faults


def _truncate(place: Place) -> None:
    os.truncate(place.model / SINGLE, (place.model / SINGLE).stat().st_size - 1000)


def _truncate_shard(place: Place) -> None:
    shard(place.model)
    path = place.model / SHARDS[1]
    os.truncate(path, path.stat().st_size // 2)


def _truncate_in_header(place: Place) -> None:
    os.truncate(place.model / SINGLE, 100)


def _empty(place: Place) -> None:
    os.truncate(place.model / SINGLE, 0)


def _swap_shards(place: Place) -> None:
    shard(place.model)
    one, two = (place.model / name for name in SHARDS)
    other = one.with_name("other")
    one.rename(other)
    two.rename(one)
    other.rename(two)


def _lose_shard(place: Place) -> None:
    shard(place.model)
    (place.model / SHARDS[1]).unlink()


def _lose_shard_and_index(place: Place) -> None:
    _lose_shard(place)
    (place.model / INDEX).unlink()


def _repeat_shard(place: Place) -> None:
    shard(place.model)
    shutil.copy(place.model / SHARDS[0], place.model / SHARDS[1])


def _repeat_tensor(place: Place) -> None:
    shard(place.model, twice=NORM)


def _two_sets(place: Place) -> None:
    whole = (place.model / SINGLE).read_bytes()
    shard(place.model)
    (place.model / SINGLE).write_bytes(whole)


def _overlap(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    header[NORM]["data_offsets"] = [0, 512]
    return header, data


def _hole(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    last = max(name for name in header if name != "__metadata__")
    header[last]["data_offsets"] = [offset + 64 for offset in header[last]["data_offsets"]]
    return header, data + bytes(64)


def _beyond(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    header[NORM]["data_offsets"] = [len(data), len(data) + 512]
    return header, data


def _key_twice(header: dict[str, Any], data: bytes) -> tuple[str, bytes]:
    return json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}', data


def _header_length(length: int) -> Callable:
    def make(place: Place) -> None:
        path = place.model / SINGLE
        join_file(path, *split_file(path), length=length)

    return make


def _large_header(place: Place) -> None:
    """A file as long as its header says."""
    path = place.model / SINGLE
    length = 100 * MIB
    path.write_bytes(length.to_bytes(8, "little") + b"{")
    os.truncate(path, 8 + length)


def _fifo(name: str) -> Callable:
    def make(place: Place) -> None:
        (place.model / name).unlink(missing_ok=True)
        os.mkfifo(place.model / name)

    return make


def _fifo_as_shard(place: Place) -> None:
    shard(place.model)
    _fifo(SHARDS[1])(place)


def _link_out(place: Place) -> None:
    shard(place.model)
    shutil.move(place.model / SHARDS[1], place.model.parent / SHARDS[1])
    (place.model / SHARDS[1]).symlink_to(place.model.parent / SHARDS[1])


def _dangling(place: Place) -> None:
    (place.model / SINGLE).unlink()
    (place.model / SINGLE).symlink_to("nowhere")


def _payload(name: str) -> Callable:
    def make(place: Place) -> None:
        state: dict[str, Any] = dict(load_file(place.model / SINGLE))
        (place.model / SINGLE).unlink()
        torch.save(state | {"x": Payload(place.canary)}, place.model / name)

    return make


WEIGHTS: Final = [
    Fault("the file is truncated", _truncate, f"{SINGLE}: cannot be read"),
    Fault("a shard is truncated", _truncate_shard, f"{SHARDS[1]}: cannot be read"),
    Fault("truncated in its header", _truncate_in_header, f"{SINGLE}: cannot be read"),
    Fault("an empty file", _empty, f"{SINGLE}: cannot be read"),
    Fault("two shards change places", _swap_shards, None),
    Fault("a shard is missing", _lose_shard, f"the shard {SHARDS[1]} is missing"),
    Fault("a shard and the index are missing", _lose_shard_and_index, f"the shard {SHARDS[1]} is missing"),
    Fault("a shard is a copy of another", _repeat_shard, f"{SHARDS[1]}: tensor .* is in {SHARDS[0]} too"),
    Fault("a tensor is in two shards", _repeat_tensor, f"{NORM} is in {SHARDS[0]} too"),
    Fault("two sets of weights", _two_sets, "two sets of weights"),
    Fault("a tensor is missing", tensor_changed(LAYER, lambda _: None), "layer 0 of 2 lacks ffn_down.weight"),
    Fault("a tensor is too short", tensor_changed(LAYER, lambda t: t[:128].clone()), "ffn_down.* has shape"),
    Fault("header: two tensors overlap", header_changed(_overlap), f"{SINGLE}: cannot be read"),
    Fault("header: a hole between tensors", header_changed(_hole), f"{SINGLE}: cannot be read"),
    Fault("header: a tensor beyond the file", header_changed(_beyond), f"{SINGLE}: cannot be read"),
    Fault("header: a name twice", header_changed(_key_twice), f"{SINGLE}: .* has {NORM} twice"),
    Fault("header: a shape that needs more bytes", entry_changed(NORM, shape=[512]), f"{SINGLE}: cannot be read"),
    Fault("header: of 100 MiB, says the file", _header_length(100 * MIB), f"{SINGLE}: cannot be read"),
    Fault("header: of 100 MiB of zeros", _large_header, f"{SINGLE}: cannot be read"),
    Fault("header: of 2^63 bytes, says the file", _header_length(1 << 63), f"{SINGLE}: cannot be read"),
    Fault("index: `../x`", index_leads_to(lambda _: f"../{SHARDS[1]}"), "is not the name of a file in this directory"),
    Fault(
        "index: an absolute path",
        index_leads_to(lambda p: str(p.model.parent / SHARDS[1])),
        "is not the name of a file in this directory",
    ),
    Fault("a shard is a link out of the folder, as in the Hub's cache", _link_out, None),
    Fault("the weights are a link to nothing", _dangling, f"no {SINGLE} in this directory"),
    Fault("the weights are a FIFO", _fifo(SINGLE), f"{SINGLE}: is a FIFO"),
    Fault("a shard is a FIFO", _fifo_as_shard, f"{SHARDS[1]}: is a FIFO"),
    Fault(
        "dtype F8_E4M3", tensor_changed(LAYER, lambda t: t.to(torch.float8_e4m3fn)), f"{LAYER} has dtype F8_E4M3; save"
    ),
    Fault("dtype I8", tensor_changed(LAYER, lambda t: t.to(torch.int8)), f"{LAYER}: has dtype int8"),
    Fault("dtype C64", tensor_changed(LAYER, lambda t: t.to(torch.complex64)), f"{LAYER} has dtype C64; save"),
    Fault("NaN in a norm", value_set(NORM, (17,), float("nan")), rf"{NORM}: 1 weights are not finite.* \[17\]"),
    Fault(
        "infinity in the embedding",
        value_set(EMBEDDING, (1234, 56), float("inf")),
        rf"{EMBEDDING}: 1 weights are not finite, the first at \[1234, 56\]",
    ),
    Fault(
        "NaN in a Sherry layer",
        value_set(LAYER, (200, 300), float("nan")),
        rf"{LAYER}: 1 weights are not finite, the first in row 200, group 75 \(weights 300\.\.303\)",
    ),
    Fault(
        "infinity in a Sherry layer",
        value_set(LAYER, (200, 300), -float("inf")),
        rf"{LAYER}: 1 weights are not finite, the first in row 200, group 75 \(weights 300\.\.303\)",
    ),
    Fault("code in pytorch_model.bin", _payload("pytorch_model.bin"), "holds more than tensors, and loading that"),
    Fault("code in model.pt", _payload("model.pt"), "holds more than tensors, and loading that could run code"),
]


def _break_tokenizer(place: Place) -> None:
    (place.model / "tokenizer.model").write_bytes(b"x" * 999)


CONFIGURATION: Final = [
    Fault("config.json is missing", removed("config.json"), r"config\.json: no such file"),
    Fault("config.json is broken", config_text('{"architectures": ['), r"config\.json: cannot be read"),
    Fault("config.json is empty", config_text(""), r"config\.json: cannot be read"),
    Fault("config.json is a list", config_text("[]"), r"config\.json: is not a JSON object"),
    Fault("config.json nests 100000 lists", config_text("[" * 100_000), r"config\.json: cannot be read"),
    Fault("config.json is a FIFO", _fifo("config.json"), r"config\.json: is a FIFO"),
    Fault("a layer more than there is", config_changed(num_hidden_layers=3), "layer 2 of 3"),
    Fault("100000 layers", config_changed(num_hidden_layers=10**5), "num_hidden_layers is 100000"),
    Fault("hidden_size is twice that", config_changed(hidden_size=512), r"has shape \[4096, 256\]"),
    Fault("intermediate_size is a text", config_changed(intermediate_size="wide"), "ffn_gate.weight has shape .*wide"),
    Fault("vocab_size of a million", config_changed(vocab_size=10**6), "vocab_size is 1000000"),
    Fault(
        "head counts that do not divide",
        config_changed(num_attention_heads=3),
        "stopped with RuntimeError: shape",
    ),
    Fault("an unknown architecture", config_changed(architectures=["Unheard"]), "does not know Unheard"),
    Fault("no tokenizer", removed("tokenizer.model", "tokenizer_config.json"), "has no tokenizer; .*--config DIR"),
    Fault("a tokenizer that is broken", _break_tokenizer, "could not parse ModelProto from"),
]


def _no_force(place: Place) -> None:
    place.flags.clear()


def _fifo_as_output(place: Place) -> None:
    place.outfile.unlink()
    os.mkfifo(place.outfile)


def _directory_missing(place: Place) -> None:
    place.outfile = place.outfile.parent / "absent" / "x.gguf"


def _output_is_input(place: Place) -> None:
    place.outfile = place.model / SINGLE


OUTPUTS: Final = [
    Fault("an output is there, and no --force", _no_force, "exists; choose another --outfile; replace it with --force"),
    Fault("the output is a FIFO", _fifo_as_output, "is a FIFO, no regular file"),
    Fault("the output's folder is missing", _directory_missing, "absent is no directory"),
    Fault("the output is the input", _output_is_input, "is an input, and would be replaced"),
]


def _file_size_limit(place: Place) -> None:
    place.limits[resource.RLIMIT_FSIZE] = 600_000


def _wide_layers(place: Place) -> None:
    """Layers that take 80 MiB each as F32."""
    torch.manual_seed(1)
    state = load_file(place.model / SINGLE)
    width = 80 * MIB // 4 // 256
    for name in ("gate", "up", "down"):
        shape = (256, width) if name == "down" else (width, 256)
        for layer in range(2):
            state[f"model.layers.{layer}.mlp.{name}_proj.weight"] = torch.randn(shape).bfloat16()
    save_file(state, place.model / SINGLE, metadata={"format": "pt"})
    edit_config(place.model, intermediate_size=width)


def _address_limit(place: Place) -> None:
    _wide_layers(place)
    place.limits[resource.RLIMIT_AS] = 40 * MIB


def _memory_limit(place: Place) -> None:
    _wide_layers(place)
    place.limits[resource.RLIMIT_DATA] = 40 * MIB


LIMITS: Final = [
    Fault("a limit of a file's size", _file_size_limit, "cannot write all of it there"),
    Fault("a limit of addresses that is less than the model", _address_limit, "there is not enough memory"),
    Fault("a limit of memory that is less than a layer", _memory_limit, "there is not enough memory"),
]

FAULTS: Final = [*WEIGHTS, *CONFIGURATION, *OUTPUTS, *LIMITS]
