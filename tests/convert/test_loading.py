"""llama.cpp has the last word on a file: what it does not load is not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from sherry_gguf import llama_cpp
from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert, pipeline
from sherry_gguf.errors import SherryError

pytestmark = pytest.mark.usefixtures("pinned_gguf")


def change_tensors(model: Path, change) -> Path:
    """The model, with tensors that are change(state)."""
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors", metadata={"format": "pt"})
    return model


def with_a_short_bias(random_checkpoint, sherry):
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.zeros(8)}
    return change_tensors(random_checkpoint("Qwen2", sherry=sherry), lambda state: state | bias)


def without_norms_of_queries(random_checkpoint, sherry):
    model = random_checkpoint("Qwen3", sherry=sherry)
    return change_tensors(model, lambda state: {name: w for name, w in state.items() if "q_norm" not in name})


def with_more_heads_than_weights(random_checkpoint, sherry):
    model = random_checkpoint("Llama", sherry=sherry)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    return model


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_a_short_bias, r"'blk.1.attn_q.bias' has wrong shape; expected +256, got +8"),
        (without_norms_of_queries, "'blk.0.attn_q_norm.weight' not found"),
        (with_more_heads_than_weights, r"'blk.0.attn_k.weight' has wrong shape; expected +256, +256, got +256, +128"),
    ],
)
def test_what_does_not_load_is_refused(random_checkpoint, sherry_config, tmp_path, monkeypatch, make, said):
    monkeypatch.setattr(pipeline, "require_loadable", lambda *_, **__: None)  # it would see the heads
    model, outfile = make(random_checkpoint, sherry_config), tmp_path / "x.gguf"
    outfile.write_bytes(b"an older file")
    with refused(rf"^llama\.cpp does not load .*{said}.*; --no-verify writes it"):
        convert(model, outfile, force=True)
    assert outfile.read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [outfile]

    unverified = convert(model, outfile, force=True, verify=False)
    assert not unverified.loaded
    assert outfile.read_bytes()[:4] == b"GGUF"


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("types", [TypeChoice(), TypeChoice("f16", "q8_0", outtype="q2_0")], ids=["sherry", "stock"])
def test_what_loads_is_said_to_load(tiny_checkpoint, tmp_path, types):
    assert convert(tiny_checkpoint, tmp_path / "x.gguf", types=types).loaded


def test_nothing_is_built_to_load_a_file(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def find_build():
        raise SherryError("no build")

    monkeypatch.setattr(llama_cpp, "find_build", find_build)
    assert main(["convert", str(tiny_checkpoint), "--outfile", str(tmp_path / "x.gguf")]) == 0
    assert "equal; not tried to load it, for that run `sherry-gguf build`" in capsys.readouterr().out.replace("\n", " ")


def test_a_program_that_crashes(tiny_checkpoint, tmp_path, monkeypatch):
    program = tmp_path / "sherry-logits"
    program.write_text('#!/bin/sh\necho "x.cpp:1: GGML_ASSERT(n > 0) failed" >&2\nkill -ABRT $$\n')
    program.chmod(0o755)
    monkeypatch.setattr(llama_cpp, "find_build", lambda: llama_cpp.Build(tmp_path, tmp_path, (program.name,)))
    with refused(r"^llama\.cpp does not load .*: x\.cpp:1: GGML_ASSERT\(n > 0\) failed; .*--no-verify"):
        convert(tiny_checkpoint, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == [program]
