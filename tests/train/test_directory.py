"""Model directories that are not what they seem: each is one line, and none starts from random weights unsaid."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sherry_gguf.errors import SherryError
from sherry_gguf.train.directory import open_model


@pytest.fixture
def trained(untrained, model_of, tmp_path):
    """A directory with weights of its own."""
    directory = shutil.copytree(untrained, tmp_path / "trained")
    model_of().save_pretrained(directory)
    return directory


def rename(directory, name_of):
    """Give tensors other names; None drops one."""
    state = load_file(directory / "model.safetensors")
    state = {name_of(name): tensor for name, tensor in state.items() if name_of(name)}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def refused(directory):
    with pytest.raises(SherryError) as error:
        open_model(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_are_read(trained, model_of):
    expected = model_of().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in open_model(trained)[0].state_dict().items())


def test_a_quantizers_buffers_are_no_fault(trained):
    state = load_file(trained / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight_quantizer.scale"] = torch.ones(1)
    save_file(state, trained / "model.safetensors", metadata={"format": "pt"})
    open_model(trained)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module."])
def test_names_of_a_wrapper(trained, prefix):
    rename(trained, lambda name: prefix + name)
    said = refused(trained)
    assert f"{prefix}model.embed_tokens.weight is a name that a wrapper gives" in said
    assert "the model's is model.embed_tokens.weight; save the model that is in the wrapper" in said


def test_tensors_that_are_missing(trained):
    rename(trained, lambda name: None if "mlp.up_proj" in name else name)
    said = refused(trained)
    assert "2 tensors of the model are missing, the first is model.layers.0.mlp.up_proj.weight" in said


def test_tensors_of_another_model(trained):
    state = load_file(trained / "model.safetensors")
    state |= {f"visual.{name}": tensor.clone() for name, tensor in state.items() if "norm" in name}
    save_file(state, trained / "model.safetensors", metadata={"format": "pt"})
    said = refused(trained)
    assert "5 tensors are none of the model that config.json describes" in said
    assert "the first is visual.model.layers.0.input_layernorm.weight" in said


def test_sizes_of_another_config(trained):
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps({**config, "intermediate_size": 384}))
    said = refused(trained)
    assert "6 tensors have other sizes than config.json says, the first is model.layers.0.mlp.down_proj.weight" in said


@pytest.mark.parametrize("name", ["weights.safetensors", "model-00001-of-00002.safetensors", "model.pt", "model.gguf"])
def test_weights_by_a_name_that_is_not_read(trained, name):
    (trained / "model.safetensors").rename(trained / name)
    assert f"no model.safetensors, and weights are not read from {name}" in refused(trained)


def test_what_a_trainer_leaves_is_no_weights(untrained, tmp_path):
    directory = shutil.copytree(untrained, tmp_path / "model")
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (directory / name).write_bytes(b"")
    open_model(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_a_pointer_instead_of_a_file(trained, name):
    (trained / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert f"{name}: is a pointer of git-lfs, not the file; get it with git lfs pull" in refused(trained)


def test_damaged_weights(trained):
    (trained / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "its weights cannot be loaded" in refused(trained)


def test_no_tokenizer(trained):
    for path in trained.glob("*token*"):
        path.unlink()
    assert "no tokenizer; put the files of the model's own beside its config.json" in refused(trained)


def test_a_damaged_tokenizer(trained):
    (trained / "tokenizer.model").write_bytes(b"\xff" * 100)
    assert "its tokenizer cannot be loaded" in refused(trained)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "nothing"}', "{}"])
def test_a_config_that_is_none(trained, config):
    (trained / "config.json").write_text(config)
    assert "its configuration cannot be loaded" in refused(trained)
