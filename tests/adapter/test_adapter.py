"""LoRAs as GGUF adapters: what is stored, and what llama.cpp makes of it over Sherry bases."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from reading import field, tensors_of, values_of
from refusals import refused
from safetensors.torch import load_file

from sherry_gguf.adapter import ALPHAS, make_adapter
from sherry_gguf.adapter.compressed import compressed
from sherry_gguf.adapter.lora import open_lora
from sherry_gguf.adapter.stored import convert_lora, type_for
from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert

CONTEXT, CHUNKS = 128, 4


def test_the_largest_stay_with_their_sign():
    weights = np.array([[0.1, -4.0, 3.0, 0.0], [2.0, -2.0, 0.5, -0.25]], dtype=np.float32)
    scale = np.float16(1.5 * weights.std(dtype=np.float64))
    assert np.array_equal(compressed(weights, 0.5, 1.5), scale * np.array([[0, -1, 1, 0], [1, -1, 0, 0]], np.float32))
    # of equals the first
    assert np.array_equal(compressed(weights, 0.375, 1.5) != 0, [[False, True, True, False], [True] + 3 * [False]])
    assert np.count_nonzero(compressed(weights, 0.001, 1.5)) == 1
    assert not compressed(np.zeros((2, 4), np.float32), 0.5, 1.5).any()


@pytest.mark.parametrize(
    ("row", "name"), [(2048, "TQ2_0"), (256, "TQ2_0"), (576, "Q4_0"), (64, "Q4_0"), (32, "Q4_0"), (16, None), (8, None)]
)
def test_types(row, name):
    found = type_for(row)
    assert (found and found.name) == name


def perplexity(runtime, model, text, *options):
    command = [runtime.program("llama-perplexity"), "-m", model, "-f", text, "-c", CONTEXT, "--chunks", CHUNKS]
    done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)[1])


@pytest.fixture(scope="module")
def text(heldout_text, tmp_path_factory):
    """So much of the held-out text that it has a few chunks."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(heldout_text.read_text(encoding="utf-8")[:2400], encoding="utf-8")
    return path


@pytest.fixture
def in_torch(sherry_model, text):
    """measure(base, lora): perplexity of both in PyTorch, over the chunks that ``perplexity`` takes."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from sherry_gguf.parity import scoring
    from sherry_gguf.train.data import bos_of

    def measure(base, lora):
        import torch

        tokenizer = AutoTokenizer.from_pretrained(base)
        model = PeftModel.from_pretrained(sherry_model(base), lora).eval()
        tokens = np.array(tokenizer(text.read_text(encoding="utf-8"))["input_ids"], dtype=np.int32)
        chunks = scoring.cut(tokens, CONTEXT, bos_of(tokenizer), CHUNKS).astype(np.int64)
        first = scoring.first_scored(CONTEXT)
        with torch.inference_mode():
            logits = model(torch.from_numpy(chunks)).logits[:, first:-1].flatten(0, 1)
        expected = torch.from_numpy(chunks[:, first + 1 :]).flatten()
        return torch.nn.functional.cross_entropy(logits, expected).exp().item()

    return measure


@pytest.mark.runtime
def test_a_sparse_ternary_adapter(
    runtime, pinned_gguf, sherry_gguf_file, tiny_checkpoint, lora, text, tmp_path, capsys
):
    """Chosen, stored and run: one magnitude and the density in each tensor, and PyTorch's perplexity with it."""
    out = tmp_path / "adapter.gguf"
    line = ["adapter", str(lora), "--density", "0.2", "--outfile", str(out), "--eval-data", str(text)]
    assert main([*line, "--ctx-size", str(CONTEXT)]) == 0
    said = capsys.readouterr().out
    base, whole, best = map(float, re.search(r"base ([\d.]+), LoRA ([\d.]+), this adapter ([\d.]+)", said).groups())
    tried = {float(alpha): float(value) for alpha, value in re.findall(r"([\d.]+): ([\d.]+)", said)}
    alpha = float(re.search(r"density 0.2, alpha ([\d.]+)", said)[1])
    assert tuple(tried) == ALPHAS
    assert min(tried, key=tried.get) == alpha
    assert whole < base
    assert best < base

    assert (field(out, "general.type"), field(out, "adapter.type")) == ("adapter", "lora")
    assert field(out, "adapter.lora.alpha") == 64
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors_of(out).items()}
    assert len(kinds) == 2 * 7 * 6
    assert all(kind == ("TQ2_0" if name.endswith("lora_a") else "Q4_0") for name, kind in kinds.items())
    trained = load_file(lora / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        found = values_of(out)[f"blk.1.ffn_up.weight.{ours}"]
        assert np.array_equal(found, compressed(trained[f"{prefix}.{theirs}.weight"].numpy(), 0.2, alpha))
        assert np.mean(found != 0) == pytest.approx(0.2, abs=1e-3)
    assert out.stat().st_size < 0.15 * (lora / "adapter_model.safetensors").stat().st_size

    in_runtime = perplexity(runtime, sherry_gguf_file, text, "--lora", out)
    assert in_runtime == pytest.approx(best, rel=0.01)
    assert perplexity(runtime, sherry_gguf_file, text) == pytest.approx(base, rel=0.01)
    wrote = subprocess.run(
        [runtime.program("llama-cli"), "-m", sherry_gguf_file, "--lora", out, "-p", "We", "-n", "4", "--single-turn"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert wrote.returncode == 0, wrote.stderr[-2000:]


@pytest.mark.runtime
@pytest.mark.parametrize("type_name", ["SHERRY", "STQ1_0"])
def test_a_plain_lora(
    runtime, pinned_gguf, random_checkpoint, sherry_config, make_lora, text, in_torch, tmp_path, type_name
):
    """As upstream converts it, over either grid: PyTorch's perplexity, which is far from the base's."""
    keys = {"SHERRY": {}, "STQ1_0": {"group_size": 256, "sherry_grid": "stride16"}}[type_name]
    model = random_checkpoint("Llama", sherry=sherry_config | keys)
    lora = make_lora(model, 8, rate=5e-3)
    convert_lora(open_lora(lora, None), lora, tmp_path / "lora.gguf", "f16")
    base = convert(model, tmp_path / "base.gguf", types=TypeChoice(outtype=type_name.lower())).outfile
    assert type_name in {tensor.tensor_type.name for tensor in tensors_of(base).values()}
    expected = in_torch(model, lora)
    for options in ((), ("--no-repack",)):
        assert perplexity(runtime, base, text, "--lora", tmp_path / "lora.gguf", *options) == pytest.approx(
            expected, rel=0.01
        )
    assert perplexity(runtime, base, text) > 1.5 * expected


def test_ranks_that_nothing_ternary_fits(pinned_gguf, make_lora, random_checkpoint, sherry_config, tmp_path):
    lora = make_lora(random_checkpoint("Llama", sherry=sherry_config), 8)
    made = make_adapter(lora, tmp_path / "x.gguf", density=0.2, alpha=2)
    assert made.stored.types == {"TQ2_0": 14, "F16": 14}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "has magnitudes of DoRA"),
        ({"peft_type": "IA3"}, "is 'IA3', not LORA"),
        (
            {"base_model_name_or_path": "absent"},
            r"absent: the LoRA's base model is not there; name its directory \(--base",
        ),
    ],
)
def test_what_cannot_be_an_adapter(lora, tmp_path, changes, said, capsys):
    copy = shutil.copytree(lora, tmp_path / "lora")
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | changes))
    assert main(["adapter", str(copy), "--outfile", str(tmp_path / "x.gguf"), "--alpha", "2"]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "x.gguf").exists()


def test_ways_out(lora, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    assert main(["adapter", str(lora), "--outfile", str(out)]) == 1
    assert "name one (--eval-data FILE), or say what alpha is (--alpha X)" in capsys.readouterr().err
    out.write_bytes(b"another file")
    with refused("exists"):
        make_adapter(lora, out, density=0.2, alpha=2)
    assert out.read_bytes() == b"another file"
    with refused("density 1.5 is not above 0 and at most 1"):
        make_adapter(lora, tmp_path / "y.gguf", density=1.5, alpha=2)
