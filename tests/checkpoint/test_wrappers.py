"""Names as wrappers make them."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.wrappers import unwrapped
from sherry_gguf.errors import SherryError

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "wrapped",
    [
        f"_orig_mod.{NAME}",
        f"module.{NAME}",
        f"base_model.model.{NAME}",
        f"_fsdp_wrapped_module.{NAME}",
        f"module._orig_mod.{NAME}",
        f"_orig_mod.module.base_model.model.{NAME}",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight",
        "model.layers.0._orig_mod.mlp.up_proj.weight",
    ],
)
def test_a_wrappers_part_is_taken_out(wrapped):
    assert unwrapped(wrapped) == NAME


@pytest.mark.parametrize("name", [NAME, "lm_head.weight", "model.module.weight", "model.base_model.model.weight"])
def test_a_models_own_name_stays(name):
    assert unwrapped(name) == name


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_checkpoint_with_such_names_is_refused(tiny_checkpoint, tmp_path, prefix):
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    state = {f"{prefix}{name}": tensor for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(state, model / "model.safetensors")
    with pytest.raises(SherryError, match=r"is a name that a wrapper gives, where the model's is (model|lm_head)\."):
        Checkpoint(model)
