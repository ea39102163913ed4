"""The functions for Python: arrays of every type in PyTorch's shapes, and one line of error for what cannot be read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

import sherry_gguf
from sherry_gguf.weights.quantize import expand, quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")


def test_tensors_are_the_checkpoints(sherry_gguf_file, tiny_checkpoint):
    state = load_file(tiny_checkpoint / "model.safetensors")
    tensors = sherry_gguf.load_tensors(sherry_gguf_file)
    assert len(tensors) == len(list(tensors)) == len(state)  # the embedding is tied
    down = tensors["blk.0.ffn_down.weight"]
    grid = quantize(state["model.layers.0.mlp.down_proj.weight"].float().numpy())
    np.testing.assert_array_equal(down, expand(grid.codes, grid.scales.astype(np.float16).astype(np.float32)))
    norm = tensors["blk.0.attn_norm.weight"]
    np.testing.assert_array_equal(norm, state["model.layers.0.input_layernorm.weight"].float().numpy())
    embedding = state["model.embed_tokens.weight"].float().numpy()
    np.testing.assert_allclose(tensors["token_embd.weight"], embedding, atol=np.abs(embedding).max() / 100)
    assert {tensors[name].dtype for name in tensors} == {np.dtype(np.float32)}
    assert tensors["token_embd.weight"].flags.writeable


def test_planes_are_ternary(sherry_gguf_file):
    tensors = sherry_gguf.load_tensors(sherry_gguf_file)
    planes = tensors.planes("blk.0.ffn_down.weight")
    assert set(np.unique(planes.t)) == {-1, 0, 1}
    np.testing.assert_array_equal(planes.weights, tensors["blk.0.ffn_down.weight"])
    with pytest.raises(sherry_gguf.SherryError, match=r"token_embd\.weight: Q8_0 has no ternary values"):
        tensors.planes("token_embd.weight")


@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q6_K", "I32"])
def test_other_types(name, pinned_gguf, tmp_path):
    values = np.arange(-512, 512).reshape(4, 256)
    writer = pinned_gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    if name == "I32":
        writer.add_tensor("x", values.astype(np.int32))
    elif name == "Q6_K":  # gguf-py can only read it: of zeros whatever the scales say
        writer.add_tensor("x", np.zeros((4, 210), np.uint8), raw_dtype=pinned_gguf.GGMLQuantizationType.Q6_K)
        values = np.zeros_like(values)
    else:
        qtype = pinned_gguf.GGMLQuantizationType[name]
        writer.add_tensor("x", pinned_gguf.quants.quantize(values.astype(np.float32), qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sherry_gguf.load_tensors(tmp_path / "x.gguf")["x"]
    assert found.dtype == {"F16": np.float16, "I32": np.int32}.get(name, np.float32)
    np.testing.assert_allclose(found, values, atol=0 if name in ("F16", "I32") else 40)


def test_what_cannot_be_read(tmp_path, sherry_gguf_file):
    with pytest.raises(KeyError):
        sherry_gguf.load_tensors(sherry_gguf_file)["no.such.tensor"]
    (tmp_path / "x.gguf").write_bytes(sherry_gguf_file.read_bytes()[:-1000])
    for function in (sherry_gguf.load_tensors, sherry_gguf.inspect_file):
        with pytest.raises(sherry_gguf.SherryError, match=r"x\.gguf"):
            function(tmp_path / "x.gguf")


def test_what_is_public_is_listed():
    # a process of its own: here modules have been imported
    script = (
        "import sherry_gguf as s; print(sorted(n for n in vars(s) if n[0] != '_')); [getattr(s, n) for n in s.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, helpers = {"errors", "interrupt"}, {"annotations", "TYPE_CHECKING", "Any"}
    assert set(eval(done.stdout)) == {"SherryError"} | modules | helpers
    with pytest.raises(AttributeError, match="no attribute 'convert_everything'"):
        sherry_gguf.convert_everything  # noqa: B018
