"""Checkpoints as AngelSlim's ``main`` writes them: what is set aside, and the methods that are told and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from remaking import PROJECTION, remake
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert import convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.quantize import quantize


def sherry(w):
    return quantize(w).weights()


def absmean(w):
    """Dense ternary in a scale run; in bf16, as that trainer computes w + (q - w) there."""
    scale = np.abs(w).mean(axis=1, keepdims=True)
    q = torch.from_numpy(np.clip(np.round(w / scale), -1, 1) * scale).bfloat16()
    latent = torch.from_numpy(w).bfloat16()
    return (latent + (q - latent)).float().numpy()


def twn(w):
    threshold = 0.75 * np.abs(w).mean(axis=1, keepdims=True)
    kept = np.abs(w) > threshold
    return np.sign(w) * kept * (np.abs(w) * kept).sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)


def lsq(w):
    """Two bits: -2, -1, 0 and 1 times a learned scale."""
    return np.clip(np.round(w / 0.02), -2, 1) * 0.02


def seq(w):
    """Two bits: 0.5 and 1.5 times a learned scale, with both signs."""
    return (np.floor(np.clip(w / 0.02, -1.99, 1.99)) + 0.5) * 0.02


def one_bit(w):
    return np.where(w < 0, -0.5, 0.5) * 0.02


def dlt(w):
    return np.clip(np.round(w / 0.02), -1, 1) * 0.02 + 0.007


METHODS = {method.__name__: method for method in (sherry, absmean, twn, lsq, seq, one_bit, dlt)}


def buffers_of(module, shape, method):
    """What the quantizers of a Linear leave in the state dict."""
    scales, learned = (shape[0], shape[1] // 128, 1), method in ("lsq", "seq", "dlt", "one_bit")
    buffers = {
        "weight_quantizer.scale": torch.full(scales, 0.02 if learned else 1.0),
        "act_quantizer.scale": torch.ones(()),
        "act_quantizer.zero_point": torch.zeros(1),
        "qkv_quantizer.scale": torch.ones(2),
    }
    if method == "dlt":
        buffers["weight_quantizer.gamma"] = torch.full(scales, 0.007)
    return {f"{module}{name}": buffer for name, buffer in buffers.items()}


@pytest.fixture
def baked(tiny_checkpoint, tmp_path):
    """make(method): the shipped model baked by it, a scale for 128 weights, with the trainer's buffers."""

    def make(method, buffers=True):
        def bake(_, w):
            runs = w.float().numpy().reshape(-1, 128)
            return torch.from_numpy(METHODS[method](runs).astype(np.float32)).bfloat16().reshape(w.shape)

        model = remake(tiny_checkpoint, tmp_path / method, bake)
        if buffers:
            state = load_file(model / "model.safetensors")
            for name in [name for name in state if PROJECTION.search(name)]:
                state |= buffers_of(name.removesuffix("weight"), state[name].shape, method)
            save_file(state, model / "model.safetensors", {"format": "pt"})
        return model

    return make


def test_a_folder(baked, pinned_gguf, sherry_gguf_file, tmp_path):
    """Scales of bf16 weights are exact in fp16, so the file holds just these."""
    model = baked("sherry")
    save_file({"model.layers.0.self_attn.k_cache.scale": torch.ones(1)}, model / "kv_cache_scales.safetensors")
    conversion = convert(model, tmp_path / "x.gguf")
    assert conversion.source == "42 baked Sherry layers"
    assert conversion.verdict.sherry.tensors == 42
    assert conversion.notes == [
        "ignored 168 quantizer buffers, the first model.layers.0.mlp.down_proj.act_quantizer.scale",
        "ignored kv_cache_scales.safetensors beside the weights: llama.cpp has a cache of its own",
    ]


def test_a_state_dict_beside_its_folder(baked, pinned_gguf, tmp_path):
    model = baked("sherry")
    path = tmp_path / "sherry_fake_quant_model.pt"
    torch.save(load_file(model / "model.safetensors"), path)
    conversion = convert(Source(path, model), tmp_path / "x.gguf")
    assert conversion.verdict.sherry.tensors == 42
    assert conversion.notes[0].startswith("ignored 168 quantizer buffers")


VALUES = {
    "absmean": "dense ternary but for rounding in bf16",
    "lsq": "quantized to a few levels, and not ternary",
    "seq": "four levels, 1 and 3 halves of a scale with both signs (seq, baked)",
    "one_bit": "binary: two values of equal magnitude",
    "dlt": "ternary plus an offset (dlt, baked)",
}


@pytest.mark.parametrize("method", VALUES)
def test_other_methods_are_told_by_their_values(baked, method):
    """No configuration, no buffers: the weights alone."""
    with pytest.raises(SherryError) as caught:
        make_plan(Checkpoint(baked(method, buffers=False)))
    assert "42 of 42 layers, the first model.layers.0.mlp.down_proj.weight, are " in str(caught.value)
    assert VALUES[method] in str(caught.value)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lsq", "weight_quantizer.scale is a learned scale, as the methods lsq and seq have it"),
        ("seq", "weight_quantizer.scale is a learned scale, as the methods lsq and seq have it"),
        (
            "dlt",
            "weight_quantizer.gamma is 'dlt', not 'sherry', which gives ternary weights times a learned scale plus",
        ),
    ],
)
def test_other_methods_are_told_by_their_buffers(baked, tiny_checkpoint, method, words):
    """Also where the weights are latents, which look like any floats."""
    model = baked(method)
    state = load_file(model / "model.safetensors") | load_file(tiny_checkpoint / "model.safetensors")
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(SherryError) as caught:
        make_plan(Checkpoint(model))
    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["absmean", "twn", "lsq", "seq", "dlt", "ultraquantv3", "something new"])
def test_other_methods_are_told_by_name(baked, tiny_checkpoint, method):
    """In config.json, as the branches write it, or in main's own file."""
    model = baked("sherry")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quant_method": method}))
    with pytest.raises(SherryError, match=rf"config\.json: quant_method is '{method}', not 'sherry'"):
        make_plan(Checkpoint(model))
    (model / "config.json").write_text(json.dumps(config))
    special = {"quant_config": {"special": {"quant_method": method, "granularity": "per_group"}}}
    (model / "angelslim_config.json").write_text(
        json.dumps({"compression_config": {"QAD": {"plugin_config": special}}})
    )
    with pytest.raises(SherryError, match=rf"angelslim_config\.json: quant_method is '{method}', not 'sherry'"):
        make_plan(Checkpoint(model))


@pytest.mark.parametrize("content", [{}, {"compression_config": None}, {"compression_config": {"QAD": 3}}])
def test_a_file_of_angelslim_that_names_no_method(baked, content):
    model = baked("sherry")
    (model / "angelslim_config.json").write_text(json.dumps(content))
    assert len(make_plan(Checkpoint(model)).layers) == 42
