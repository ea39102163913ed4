"""A checkpoint is data from elsewhere: it may have no end, inflate or be damaged, and is refused in one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.declared import check_regex, matching
from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.errors import SherryError
from sherry_gguf.train.directory import open_model

WEIGHT = "model.layers.0.mlp.down_proj.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def refuses(model: Path, message: str, config: Path | None = None) -> None:
    with pytest.raises(SherryError, match=message) as caught:
        Checkpoint(model, config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [SINGLE, INDEX, "config.json", "tokenizer.model", "generation_config.json"])
def test_a_fifo_is_not_read(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    refuses(model, f"{name}: is a FIFO, and only regular files are read")


@pytest.mark.parametrize("name", [SINGLE, INDEX, "config.json"])
def test_a_device_and_a_directory_are_not_read(model, name):
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("/dev/zero")
    refuses(model, f"{name}: is a device")
    (model / name).unlink()
    (model / name).mkdir()
    refuses(model, f"{name}: is a directory")


def test_shards_and_state_dicts_are_regular_files_too(model):
    (model / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: "shard.safetensors"}}))
    (model / SINGLE).unlink()
    os.mkfifo(model / "shard.safetensors")
    refuses(model, "shard.safetensors: is a FIFO")
    (model / INDEX).unlink()
    os.mkfifo(model / "x.pt")
    refuses(model / "x.pt", r"x\.pt: is a FIFO", model)
    refuses(model, r"x\.pt: is a FIFO")


def test_a_file_of_a_hub_cache_is_a_link(model, tmp_path):
    """Its snapshots are links to files elsewhere, which only the hub's own client makes."""
    for name in (SINGLE, "config.json"):
        shutil.move(model / name, tmp_path / name)
        (model / name).symlink_to(tmp_path / name)
    assert WEIGHT in Checkpoint(model).names


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", "a/b"])
def test_an_index_names_files_of_its_directory(model, name):
    (model / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: name}}))
    refuses(model, "is not the name of a file in this directory")


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_a_name_that_no_file_can_have(model, name):
    (model / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: name}}))
    refuses(model, "cannot be read")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, '{"vocab_size": ' + "9" * 5000 + "}", '{"a": "\xff"}']
)
def test_json_without_end(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SherryError, match=r"config\.json: cannot be read") as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 1000


def test_json_of_gigabytes(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(SherryError, match="too many for a model's settings"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 10**5}, "num_hidden_layers is 100000, and the tensors are those of 6 layers"),
        ({"num_hidden_layers": 1e300}, "num_hidden_layers is 1e"),
        ({"text_config": {"num_hidden_layers": 10**5}}, "num_hidden_layers is 100000"),
        ({"num_nextn_predict_layers": 10**5}, "num_nextn_predict_layers is 100000"),
        ({"vocab_size": 10**6}, "vocab_size is 1000000, and no tensor has more than 4096 rows"),
        ({"text_config": {"vocab_size": 10**30}}, "vocab_size is 1000"),
    ],
)
def test_counts_that_no_tensor_backs(model, keys, message):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **keys}))
    refuses(model, f"config.json: {message}")


def test_counts_near_those_of_the_tensors(model):
    """Layers may be shared, and others come on top; rows of the embedding may be padded."""
    config = json.loads((model / "config.json").read_text())
    near = {
        "num_hidden_layers": 12,
        "num_nextn_predict_layers": 1,
        "vocab_size": 4000,
        "vision_config": {"n_layer": 27},
    }
    (model / "config.json").write_text(json.dumps({**config, **near}))
    assert WEIGHT in Checkpoint(model).names


def test_a_regex_that_would_take_years(monkeypatch):
    monkeypatch.setattr("sherry_gguf.checkpoint.declared._MATCHING_TIME", 0.2)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(50)]
    with pytest.raises(SherryError, match="takes too long"):
        matching(r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1[!?]|\9q", names)
    for pattern in ("a{1000000000}", "(?:(?:(?:a?){500}){500}){500}b", "x" * 20_000):
        with pytest.raises(SherryError, match="too large a regular expression"):
            matching(pattern, names)
    assert matching(r"layers\.\d{1,2}\.mlp\.(up|down)_proj", names) == names


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999}", "(" * 5000 + ")" * 5000])
def test_what_is_no_regex(pattern):
    with pytest.raises(SherryError, match="no regular expression"):
        check_regex(pattern)


def shards_of(model: Path) -> dict[str, str]:
    """The model's weights once more, in two shards, as their weight_map."""
    state = load_file(model / SINGLE)
    names = sorted(state)
    weight_map = {}
    for shard, members in (("model-1-of-2.safetensors", names[:20]), ("model-2-of-2.safetensors", names[20:])):
        save_file({name: state[name] * 2 for name in members}, model / shard)
        weight_map.update(dict.fromkeys(members, shard))
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_two_sets_of_weights(model):
    """transformers would read the one file, this converter once read the shards."""
    shards_of(model)
    refuses(model, r"two sets of weights, model\.safetensors and the shards of .*index\.json, as model-1-of-2")
    (model / "model-1-of-2.safetensors").unlink()
    refuses(model, "two sets of weights")
    (model / SINGLE).rename(model / "other.file")
    refuses(model, "the shard model-1-of-2.safetensors is missing")


def test_a_stale_index_beside_a_whole_file(model):
    before = load_file(model / SINGLE)
    for shard in {*shards_of(model).values()}:
        (model / shard).unlink()
    assert torch.equal(Checkpoint(model).load(WEIGHT), before[WEIGHT])
    assert set(Checkpoint(model).names) == set(before)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_a_broken_index_beside_a_whole_file(model, text):
    """transformers reads the file alone; without the file the index counts."""
    (model / INDEX).write_text(text)
    assert torch.equal(Checkpoint(model).load(WEIGHT), load_file(model / SINGLE)[WEIGHT])
    (model / SINGLE).unlink()
    refuses(model, INDEX)


@pytest.mark.parametrize("read", [Checkpoint, open_model])
def test_a_fifo_among_the_templates_is_not_read(model, read):
    (model / "additional_chat_templates").mkdir()
    os.mkfifo(model / "additional_chat_templates" / "x.jinja")
    with pytest.raises(SherryError, match=r"x\.jinja: is a FIFO"):
        read(model)


def test_shards_without_their_index_beside_a_whole_file(model):
    shards_of(model)
    (model / INDEX).unlink()
    assert torch.equal(Checkpoint(model).load(WEIGHT), load_file(model / SINGLE)[WEIGHT])


def test_an_index_of_one_file(model):
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(model / SINGLE), SINGLE)}))
    assert WEIGHT in Checkpoint(model).names
    (model / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: SINGLE, "lost.weight": SINGLE}}))
    refuses(model, r"in no shard, the first is lost\.weight")


OF_TRAINERS = ("rng_state.pth", "rng_state_0.pth", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x_fake_quant_model.pt"])
def test_the_one_state_dict_of_a_folder(model, name):
    state = load_file(model / SINGLE)
    (model / SINGLE).unlink()
    torch.save(state, model / name)
    for other in (*OF_TRAINERS, "training_args.bin"):
        (model / other).write_bytes(b"")
    checkpoint = Checkpoint(model)
    assert torch.equal(checkpoint.load(WEIGHT), state[WEIGHT])
    assert set(checkpoint.names) == set(state)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("zero_to_fp32.py", "rng_state_0.pth", "global_step3/x.pt"), r"DeepSpeed ZeRO .*python zero_to_fp32\.py"),
        (("rng_state_0.pth", "global_step3/x.pt"), "DeepSpeed ZeRO"),
        (("pytorch_model_fsdp_0/__0_0.distcp", "rng_state_0.pth"), r"FSDP .*accelerate merge-weights \S*_fsdp_0 "),
        (("__0_0.distcp", "optimizer.bin"), "FSDP .*accelerate merge-weights"),
        (("rng_state_0.pth", "rng_state_1.pth"), "training on several devices, and no weights"),
        (("optimizer.pt", "scheduler.pt"), r"optimizer\.pt is a trainer's state and holds no weights"),
    ],
)
def test_a_folder_of_a_training_is_named_as_such(model, files, message):
    (model / SINGLE).unlink()
    for name in files:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"")
    refuses(model, message)


def tensors_of_other_kinds():
    dense = torch.eye(4)
    yield {1: dense}, "has the key 1"
    yield {"a": dense.to_sparse()}, "tensor a is sparse"
    yield {"a": dense.to_sparse_csr()}, "tensor a is sparse"
    yield {"a": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)}, "tensor a is quantized"
    yield {"a": torch.nested.nested_tensor([dense[0], dense[1, :2]])}, "tensor a is nested"
    yield {"a": torch.empty(4, device="meta")}, "tensor a is a meta tensor"


@pytest.mark.filterwarnings("ignore")
def test_state_dicts_of_other_tensors(tmp_path, model, recwarn):
    for state, message in tensors_of_other_kinds():
        torch.save(state, tmp_path / "x.pt")
        recwarn.clear()
        refuses(tmp_path / "x.pt", message, model)
        assert not recwarn.list


def test_damaged_state_dicts(tmp_path, model):
    path = tmp_path / "x.pt"
    torch.save({WEIGHT: torch.ones(100)}, path)
    whole = path.read_bytes()
    draw = random.Random(1)
    damaged = [draw.randbytes(1000) for _ in range(20)]
    damaged += [whole[: draw.randrange(len(whole))] for _ in range(20)]
    for _ in range(150):
        some = bytearray(whole)
        some[draw.randrange(len(some))] = draw.randrange(256)
        damaged.append(bytes(some))
    said = []
    for content in damaged:
        path.write_bytes(content)
        try:
            Checkpoint(path, model)
        except SherryError as error:
            said.append(str(error))
    assert len(said) > 40
    assert [line for line in said if len(line.splitlines()) != 1] == []


def test_a_name_with_a_line_break_is_told_in_one_line(model):
    (model / SINGLE).rename(model / "shard.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"\n\x1b[31m": "shard.safetensors"}}))
    refuses(model, r"1 tensors of model\.safetensors\.index\.json are in no shard, the first is \\n\\x1b\[31m;")
