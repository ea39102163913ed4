"""Regridded files of STQ1_0: every tensor against the checkpoint, by a way of its own."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from reading import tensors_of
from remaking import remake
from safetensors.torch import load_file
from trainer import stored_forward

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.cli import run_command
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.regridded import is_regridded, regridded
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.scales import rounded
from sherry_gguf.parity import weights
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")

EXACT = TypeChoice(token_embedding="f32", output="f32", outtype="stq1_0")
PROJECTIONS = {"attn_q": "self_attn.q", "attn_k": "self_attn.k", "attn_v": "self_attn.v", "attn_output": "self_attn.o"}
PROJECTIONS |= {f"ffn_{name}": f"mlp.{name}" for name in ("gate", "up", "down")}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def order(n):
    """int64[n]: which channel is at each place."""
    found = np.empty(n, dtype=np.int64)
    for channel in range(n):
        run, within = divmod(channel, 64)
        found[64 * run + within // 4 + 16 * (within % 4)] = channel
    return found


def rotated(w: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows of q and k in a Llama GGUF: the two halves of a head's rotation interleaved."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("model", ["llama", "llama-biases", "qwen2", "qwen3"])
def test_every_tensor(model, granularity, trained_model, pinned_gguf, tmp_path):
    directory = trained_model(model, granularity)
    report = convert(directory, tmp_path / "x.gguf", types=EXACT, regrid="exact")
    assert (report.verdict.sherry.tensors, report.verdict.types) == (14, ["STQ1_0"])
    assert any("sherry.regrid" in note for note in report.notes)
    assert is_regridded(report.outfile)
    tensors = tensors_of(report.outfile).values()
    assert {t.tensor_type.name for t in tensors} == {"STQ1_0", "F32"}
    found = {t.name: pinned_gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}
    state = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    assert len(found) == len(state)

    for ours, theirs in {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}.items():
        if f"{theirs}.weight" in state:
            w = state[f"{theirs}.weight"].float().numpy()
            assert np.array_equal(found.pop(f"{ours}.weight"), w[..., order(256)]), ours
    for layer in range(2):
        for ours, theirs in NORMS.items():
            w = state[f"model.layers.{layer}.{theirs}.weight"].float().numpy()
            assert np.array_equal(found.pop(f"blk.{layer}.{ours}.weight"), w[order(256)]), ours
        for ours, theirs in PROJECTIONS.items():
            latents = state[f"model.layers.{layer}.{theirs}_proj.weight"]
            w = stored_forward(latents, latents.shape[1] if granularity == "per_channel" else latents.numel())
            bias = state.get(f"model.layers.{layer}.{theirs}_proj.bias")
            rows = np.arange(len(w)) if ours in heads else order(len(w))
            if ours in heads and model.startswith("llama"):
                rows = rotated(rows, heads[ours])
            expected = w[rows][:, order(w.shape[1])]
            assert np.array_equal(found.pop(f"blk.{layer}.{ours}.weight"), expected), ours
            if bias is not None:
                assert np.array_equal(found.pop(f"blk.{layer}.{ours}.bias"), bias.float().numpy()[rows]), ours
    for name, values in found.items():  # norms of a head
        number, norm = name.split(".")[1:3]
        theirs = norm.replace("attn_", "self_attn.")
        assert np.array_equal(values, state[f"model.layers.{number}.{theirs}.weight"].float().numpy())
    assert len(found) == (4 if model == "qwen3" else 0)


def test_parity_compares_with_the_weights_in_this_order(trained_model, tmp_path):
    directory = trained_model("llama")
    gguf = convert(directory, tmp_path / "x.gguf", types=EXACT, regrid="exact").outfile
    checkpoint = Checkpoint(directory)
    plan = make_plan(checkpoint)
    right = weights.check(gguf, checkpoint, regridded(plan, checkpoint))
    assert (right.tensors, right.wrong_weights, right.wrong_scales) == (14, 0, 0)
    wrong = weights.check(gguf, checkpoint, plan)
    assert wrong.wrong_weights > wrong.weights // 4


def test_a_file_in_an_order_of_the_future(trained_model, tmp_path):
    gguf = convert(trained_model("llama"), tmp_path / "x.gguf", types=EXACT, regrid="exact").outfile
    field = b"sherry.regrid" + struct.pack("<IQ", 8, 5)  # a string of 5 bytes
    content = gguf.read_bytes()
    assert content.count(field + b"exact") == 1
    gguf.write_bytes(content.replace(field + b"exact", field + b"other"))
    with pytest.raises(SherryError, match=r"x\.gguf: sherry\.regrid is 'other', this sherry-gguf knows 'exact' alone"):
        is_regridded(gguf)


def baked(source, directory, granularity):
    """A copy of a model whose layers are baked already, and whose config.json is silent about it."""

    def change(_, w):
        found = quantize(w.float().numpy(), granularity)
        return torch.from_numpy(found.weights(rounded(found.scales)))

    return remake(source, directory, change)


def test_baked_layers(trained_model, tmp_path):
    source = trained_model("llama")
    latent = convert(source, tmp_path / "latent.gguf", types=EXACT, regrid="exact").outfile
    model = baked(source, tmp_path / "baked", Granularity("per_channel"))
    found = convert(model, tmp_path / "baked.gguf", types=EXACT, regrid="exact").outfile
    one, other = tensors_of(latent), tensors_of(found)
    assert list(one) == list(other)
    assert all(np.array_equal(tensor.data, other[name].data) for name, tensor in one.items())


def test_baked_layers_with_a_scale_for_128_weights(trained_model, tmp_path):
    model = baked(trained_model("llama"), tmp_path / "baked", Granularity())
    with pytest.raises(SherryError, match=r"^blk\.0\.\w+\.weight: at least [\d,]+ of [\d,]+ weights do not fit STQ1_0"):
        convert(model, tmp_path / "x.gguf", types=EXACT, regrid="exact")
    assert not list(tmp_path.glob("*.gguf*"))


def test_the_command(trained_model, tmp_path, capsys):
    arguments = ["--outfile", str(tmp_path / "x.gguf"), "--outtype", "STQ1_0", "--regrid", "exact"]
    assert run_command("convert", [str(trained_model("qwen3")), *arguments]) == 0
    said = capsys.readouterr().out
    assert "another order than the checkpoint's (sherry.regrid)" in said
    assert "verified: 14 STQ1_0 tensors" in said
