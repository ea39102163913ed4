"""What a directory or state dict holds, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.granularity import Granularity, parse_granularity

WEIGHT = "model.layers.0.mlp.down_proj.weight"


def write(directory, tensors=None, config=None, name="model.safetensors"):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {}))
    save_file(tensors or {WEIGHT: torch.ones(4, 128)}, directory / name)
    return directory


def test_the_shipped_checkpoint(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint)
    assert checkpoint.declared_granularity() == Granularity("per_group", 128)
    assert checkpoint.ignored == []
    expected = load_file(tiny_checkpoint / "model.safetensors")
    assert set(checkpoint.names) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.info(name).shape == tuple(tensor.shape)
        assert checkpoint.info(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.load(name), tensor)
        assert torch.equal(checkpoint.head(name, 3), tensor[:3])


def test_shards(tiny_checkpoint, tmp_path):
    state = load_file(tiny_checkpoint / "model.safetensors")
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for shard, members in shards.items():
        write(tmp_path, {name: state[name] for name in members}, name=shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(Checkpoint(tmp_path).load(names[-1]), state[names[-1]])
    assert sorted(Checkpoint(tmp_path).names) == names

    index.write_text(json.dumps({"weight_map": {**weight_map, "lost.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(SherryError, match=r"1 tensors .* in no shard, the first is lost\.weight"):
        Checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {**weight_map, "x": "model-00003.safetensors"}}))
    with pytest.raises(SherryError, match=r"shard model-00003\.safetensors is missing"):
        Checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(SherryError, match="not the name of a file in this directory"):
        Checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(SherryError, match=r"index\.json: cannot be read"):
        Checkpoint(tmp_path)


def test_a_missing_shard_without_an_index(tmp_path):
    write(tmp_path, name="model-00001-of-00002.safetensors")
    with pytest.raises(SherryError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        Checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write(tmp_path, name="model-1.safetensors")
    write(tmp_path, name="model-2.safetensors")
    with pytest.raises(SherryError, match=r"down_proj.weight is in model-1\.safetensors too"):
        Checkpoint(tmp_path)


def test_state_dict(tiny_checkpoint, tmp_path):
    state = load_file(tiny_checkpoint / "model.safetensors")
    buffers = {"model.layers.0.mlp.down_proj.weight_quantizer.scale": torch.ones(1)}
    torch.save({**state, **buffers}, tmp_path / "x_fake_quant_model.pt")
    checkpoint = Checkpoint(tmp_path / "x_fake_quant_model.pt", tiny_checkpoint)
    assert checkpoint.ignored == list(buffers)
    assert set(checkpoint.names) == set(state)
    assert torch.equal(checkpoint.load(WEIGHT), state[WEIGHT])
    assert torch.equal(checkpoint.head(WEIGHT, 2), state[WEIGHT][:2])
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(Checkpoint(tmp_path / "legacy.pt", tiny_checkpoint).load(WEIGHT), state[WEIGHT])
    with refused("--config DIR"):
        Checkpoint(tmp_path / "x_fake_quant_model.pt")


class Harmful:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Harmful()}, "more than tensors"),
        ({"a": torch.ones(2), "step": 3}, "not a flat dict"),
        (torch.ones(2), "not a flat dict"),
    ],
)
def test_state_dicts_that_are_refused(tmp_path, tiny_checkpoint, capsys, value, message):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(SherryError, match=message):
        Checkpoint(tmp_path / "x.pt", tiny_checkpoint)
    assert "never" not in capsys.readouterr().out


def test_files_that_are_no_checkpoints(tmp_path, tiny_checkpoint):
    for content in (b"", b"garbage", pickle.dumps([1])):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(SherryError, match=r"x\.pt: "):
            Checkpoint(tmp_path / "x.pt", tiny_checkpoint)
    with pytest.raises(SherryError, match="no such file or directory"):
        Checkpoint(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SherryError, match=r"no model\.safetensors in this directory"):
        Checkpoint(empty)
    for name in ("model.pt", "pytorch_model.bin"):
        (empty / name).write_bytes(b"")
    with refused(r"2 state dicts, .*name the file itself: .*pytorch_model\.bin --config"):
        Checkpoint(empty)
    (empty / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(SherryError, match="sharded torch checkpoint"):
        Checkpoint(empty)


def test_a_damaged_file_is_named(tmp_path, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SherryError, match=r"model\.safetensors: cannot be read"):
        Checkpoint(tmp_path / "m")


@pytest.mark.parametrize("text", [None, "[1]", "{", ""])
def test_config_that_cannot_be_read(tmp_path, text):
    write(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SherryError, match=r"config\.json"):
        Checkpoint(tmp_path)


SHERRY = {"quant_method": "sherry", "N": 3, "M": 4, "granularity": "per_group", "group_size": 128}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        (SHERRY, Granularity("per_group", 128)),
        ({**SHERRY, "group_size": 32}, Granularity("per_group", 32)),
        ({**SHERRY, "granularity": "per_channel"}, Granularity("per_channel")),
        ({**SHERRY, "granularity": "per_tensor", "group_size": None}, Granularity("per_tensor")),
    ],
)
def test_declared_granularity(tmp_path, config, expected):
    assert Checkpoint(write(tmp_path, config=config)).declared_granularity() == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SHERRY, "quant_method": "twn"}, "'twn'"),
        ({**SHERRY, "N": 2}, "2:4"),
        ({**SHERRY, "granularity": None}, "granularity None"),
        ({**SHERRY, "granularity": "per_row"}, "'per_row'"),
        ({**SHERRY, "group_size": 0}, "positive group size, got 0"),
        ({**SHERRY, "group_size": "128"}, "got '128'"),
    ],
)
def test_declarations_that_are_refused(tmp_path, config, message):
    with pytest.raises(SherryError, match=message) as caught:
        Checkpoint(write(tmp_path, config=config)).declared_granularity()
    assert "config.json" in str(caught.value)


def test_parse_granularity_defaults():
    assert parse_granularity("per_group", 256) == Granularity("per_group", 256)
    with pytest.raises(SherryError, match="got True"):
        parse_granularity("per_group", True)
