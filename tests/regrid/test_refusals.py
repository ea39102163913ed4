"""What cannot be regridded exactly is refused, with the reason: nothing is passed over."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.cli import run_command
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import regridded
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.channel_order import moved_dims
from sherry_gguf.weights.granularity import Granularity

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPES = {"model.embed_tokens.weight": (1000, 256), "model.layers.0.self_attn.v_proj.weight": (128, 256)}


def test_what_is_not_refused():
    assert moved_dims(SHAPES, CONFIG) == {
        "model.embed_tokens.weight": (1,),
        "model.layers.0.self_attn.v_proj.weight": (0, 1),
    }
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": (32,)}
    assert moved_dims(old, CONFIG | {"layer_types": ["full_attention"]}) == {next(iter(old)): ()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "Qwen3ForCausalLM, not in MixtralForCausalLM"),
        ({"architectures": ["LlamaModel"]}, "not in LlamaModel"),
        ({"architectures": None}, "not in None"),
        (
            {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]},
            "not in ['LlamaForCausalLM', 'Qwen2ForCausalLM']",
        ),
        ({"use_sliding_window": True}, "full attention in all layers alone"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "full attention in all layers alone"),
        ({"hidden_size": 384, "head_dim": 64}, "rows of a multiple of 256 weights, hidden_size is 384"),
        ({"intermediate_size": 640}, "rows of a multiple of 256 weights, intermediate_size is 640"),
        ({"num_attention_heads": 2, "head_dim": 64}, "rows of a multiple of 256 weights, heads x head_dim is 128"),
        ({"num_attention_heads": 8}, "heads of a multiple of 64 channels, these have 32"),
        ({"head_dim": 96}, "heads of a multiple of 64 channels, these have 96"),
        ({"intermediate_size": None}, "intermediate_size is None, not a positive integer"),
        ({"hidden_size": 0}, "hidden_size is 0, not a positive integer"),
    ],
)
def test_configurations(change, words):
    with pytest.raises(SherryError, match=re.escape(words)):
        moved_dims(SHAPES, CONFIG | change)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Llama", "model.layers.0.self_attn.q_norm.weight"),
        ("Llama", "model.layers.0.self_attn.qkv_proj.weight"),
        ("Llama", "model.layers.0.mlp.gate_up_proj.weight"),
        ("Llama", "model.layers.0.mlp.experts.0.up_proj.weight"),
        ("Llama", "model.layers.0.input_layernorm.bias"),
        ("Llama", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("Llama", "model.layers.0.self_attn.v_proj.weight_scale"),
        ("Llama", "model.layers.0.self_attn.v_proj.lora_A.weight"),
        ("Llama", "model.embed_positions.weight"),
        ("Llama", "layers.0.mlp.up_proj.weight"),
        ("Llama", "lm_head.bias"),
        ("Qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("Qwen2", "model.layers.0.self_attn.q_norm.weight"),
        ("Qwen3", "model.layers.0.mlp.up_proj.bias"),
        ("Qwen3", "model.layers.0.mlp.shared_expert.up_proj.weight"),
    ],
)
def test_tensors_without_a_rule(architecture, name):
    architectures = [f"{architecture}ForCausalLM"]
    with pytest.raises(SherryError, match=rf"^{re.escape(name)}: .* no rule for this tensor of {architecture}"):
        moved_dims({**SHAPES, name: (256, 256)}, CONFIG | {"architectures": architectures})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (1000, 512)),
        ("model.layers.0.self_attn.v_proj.weight", (256, 256)),
        ("model.layers.0.self_attn.q_proj.weight", (512, 256)),
        ("model.layers.0.self_attn.k_proj.bias", (256,)),
        ("model.layers.0.mlp.down_proj.weight", (512, 256)),
        ("model.layers.0.mlp.down_proj.weight", (1, 256, 512)),
        ("model.norm.weight", (1, 256)),
    ],
)
def test_shapes_that_the_configuration_does_not_have(name, shape):
    with pytest.raises(SherryError, match=rf"^{re.escape(f'{name}: has shape {list(shape)}')}, which is not "):
        moved_dims({**SHAPES, name: shape}, CONFIG)


def test_scales(trained_model):
    checkpoint = Checkpoint(trained_model("llama"))
    for size in (256, 128, 64):
        plan = make_plan(checkpoint, Source(checkpoint.path, granularity=Granularity("per_group", size)))
        if size == 256:
            assert regridded(plan, checkpoint).moved
            continue
        with pytest.raises(SherryError, match=rf"_proj\.weight: scales per_group {size} are finer than STQ1_0's"):
            regridded(plan, checkpoint)


def test_groups_that_are_those_of_stq1_0(trained_model):
    checkpoint = Checkpoint(trained_model("llama"))
    with refused(r"_proj\.weight: its groups are STQ1_0's already; leave out --regrid"):
        regridded(make_plan(checkpoint, Source(checkpoint.path, grid="stride16")), checkpoint)


def test_an_embedding_that_is_a_sherry_layer(trained_model):
    checkpoint = Checkpoint(trained_model("llama"))
    plan = make_plan(checkpoint, Source(checkpoint.path, sherry_layers="(_proj|embed_tokens).weight$"))
    with pytest.raises(SherryError, match=r"model\.embed_tokens\.weight: .* floating point"):
        regridded(plan, checkpoint)


def test_integers(trained_model, tmp_path):
    shutil.copytree(trained_model("llama"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].to(torch.int8)
    save_file(state, path, {"format": "pt"})
    checkpoint = Checkpoint(tmp_path / "model")
    with pytest.raises(SherryError, match=r"model\.embed_tokens\.weight: has dtype torch\.int8"):
        regridded(make_plan(checkpoint), checkpoint)


@pytest.mark.parametrize("outtype", ["sherry", "tq2_0", "auto"])
def test_other_types_on_the_command_line(outtype, trained_model, tmp_path, capsys):
    outfile = tmp_path / "x.gguf"
    arguments = [str(trained_model("llama")), "--outfile", str(outfile), "--outtype", outtype, "--regrid", "exact"]
    assert run_command("convert", arguments) == 1
    assert (
        f"regridding is for STQ1_0 alone, and {outtype} was asked for; give --outtype stq1_0" in capsys.readouterr().err
    )
    assert not outfile.exists()
