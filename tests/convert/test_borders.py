"""What is at the borders of a conversion: heads, sizes, settings and names that do not fit each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import tensors_of
from refusals import refused
from safetensors.torch import load_file, save_file

from sherry_gguf.convert import TypeChoice, convert

pytestmark = pytest.mark.usefixtures("pinned_gguf")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def changed(random_checkpoint, sherry_config, tmp_path) -> Callable[..., Path]:
    """changed(tensors, key=value ..): a small Llama with other tensors, where None takes one away, and settings."""

    def make(tensors: dict[str, Any] | None = None, *, tied: bool = False, **config: Any) -> Path:
        model = tmp_path / "model"
        shutil.copytree(random_checkpoint("Llama", sherry=sherry_config, tie_word_embeddings=tied), model)
        state = load_file(model / "model.safetensors")
        state |= {name: value(state) if callable(value) else value for name, value in (tensors or {}).items()}
        state = {name: value for name, value in state.items() if value is not None}
        save_file(state, model / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((model / "config.json").read_text()) | config
        settings = {key: value for key, value in settings.items() if value is not ...}
        (model / "config.json").write_text(json.dumps(settings))
        return model

    return make


def test_a_head_of_its_own_is_written_whatever_config_json_ties(changed, tmp_path):
    model = changed({HEAD: lambda state: 2 * state[EMBEDDING]}, tied=True)
    found = tensors_of(convert(model, tmp_path / "x.gguf", types=TypeChoice("bf16", "bf16")).outfile)
    head = torch.from_numpy(found["output.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(head, load_file(model / "model.safetensors")[HEAD])


def test_a_copy_of_the_embedding_is_written_once(changed, tmp_path):
    model = changed({HEAD: lambda state: state[EMBEDDING].clone()}, tied=True)
    assert "output.weight" not in tensors_of(convert(model, tmp_path / "x.gguf").outfile)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (HEAD, "nothing that becomes output.weight"),
        (EMBEDDING, "nothing that becomes token_embd.weight"),
        ("model.norm.weight", "nothing that becomes output_norm.weight"),
        ("model.layers.1.input_layernorm.weight", "layer 1 of 2 lacks attn_norm.weight"),
    ],
)
def test_a_weight_that_is_missing(changed, tmp_path, name, said):
    with refused(f"not complete.*{said}"):
        convert(changed({name: None}), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 512, "head_dim": 64}, r"token_embd.weight has shape \[4096, 256\].*it has \[4096, 512\]"),
        ({"intermediate_size": 768}, r"blk.0.ffn_gate.weight has shape \[512, 256\].*it has \[768, 256\]"),
        ({"num_key_value_heads": 4}, r"blk.0.attn_k.weight has shape \[128, 256\].*it has \[256, 256\]"),
    ],
)
def test_sizes_that_contradict_the_tensors(changed, tmp_path, config, said):
    with refused(said):
        convert(changed(**config), tmp_path / "x.gguf")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("type_name", "value"), [("f16", 1e5), ("q8_0", 1e9), ("q4_0", 1e6)])
def test_a_value_that_its_type_cannot_hold(changed, tmp_path, type_name, value, verify):
    def with_outlier(state):
        head = state[HEAD].clone()
        head[3, 5] = value
        return head

    with refused(rf"output\.weight: weight \d+ of row 3 is too large for {type_name.upper()}.*--output-tensor-type"):
        convert(changed({HEAD: with_outlier}), tmp_path / "x.gguf", types=TypeChoice(output=type_name), verify=verify)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_an_activation_that_is_not_computed(changed, tmp_path):
    with refused("hidden_act is 'gelu', and llama.cpp computes silu"):
        convert(changed(hidden_act="gelu"), tmp_path / "x.gguf")


def test_a_model_type_is_enough(changed, tmp_path):
    assert convert(changed(architectures=...), tmp_path / "x.gguf").verdict is not None


def test_what_the_file_does_not_say_is_said(changed, tmp_path):
    model = changed(eos_token_id=[2, 7], quantization_config={"quant_method": "fp8"})
    notes = "\n".join(convert(model, tmp_path / "x.gguf").notes)
    assert "more end tokens than 2, which is the file's: 7" in notes
    assert "ignored quantization_config" in notes


def test_the_model_of_the_current_directory_has_a_name(tiny_checkpoint, tmp_path, monkeypatch):
    model = tmp_path / "Tiny"
    shutil.copytree(tiny_checkpoint, model)
    monkeypatch.chdir(model)
    assert convert(Path()).outfile.name == "Tiny-5.8M-SHERRY.gguf"


def test_a_snapshot_of_the_hub(tiny_checkpoint, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--some--Tiny" / "snapshots" / "0123abcd"
    shutil.copytree(tiny_checkpoint, snapshot)
    before = sorted(path.name for path in snapshot.iterdir())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert(snapshot).outfile == tmp_path / "here" / "Tiny-5.8M-SHERRY.gguf"
    assert sorted(path.name for path in snapshot.iterdir()) == before


@pytest.mark.parametrize(("asked", "written"), [("a{1}.gguf", "a{1}.gguf"), ("{x}-{ftype}.gguf", "{x}-sherry.gguf")])
def test_braces_in_a_name(tiny_checkpoint, tmp_path, asked, written):
    assert convert(tiny_checkpoint, tmp_path / asked).outfile == tmp_path / written
