"""Calibrated files: PyTorch gets the weights of the file, row by row where they belong, and the runtime is compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reading import tensors_of
from refusals import refused
from remaking import remake

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.cli import run_command
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.calibrated import Calibration
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.requantize import requantize
from sherry_gguf.formats.q2_0 import Q2_0
from sherry_gguf.formats.sherry import SHERRY
from sherry_gguf.parity import calibrated
from sherry_gguf.parity.calibrated import is_calibrated, read_chosen
from sherry_gguf.parity.compare import parity
from sherry_gguf.parity.findings import Limits

SMALL = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
TWO = TypeChoice(outtype="sherry_2p")


@pytest.fixture
def on(heldout_text):
    return Calibration(heldout_text, tokens=1024)


@pytest.mark.usefixtures("pinned_gguf")
@pytest.mark.parametrize(("family", "changes"), [("Llama", {}), ("Mixtral", {"num_local_experts": 4})])
def test_every_row_is_where_it_belongs(random_checkpoint, on, tmp_path, monkeypatch, family, changes):
    """What calibration chose, after upstream's permutations and stacks and their undoing."""
    from sherry_gguf.convert import pipeline

    calibrate, chosen = pipeline.calibrate_job, {}

    def remembers(job, *args):
        found = calibrate(job, *args)
        chosen.update({name: found.load(name) for name in found.layer_of})
        return found

    monkeypatch.setattr(pipeline, "calibrate_job", remembers)
    model = random_checkpoint(family, **SMALL, **changes)
    file = convert(model, tmp_path / "x.gguf", types=TWO, calibration=on).outfile
    assert is_calibrated(file)
    found = read_chosen(file, Checkpoint(model), Source(model))
    assert found.weights.keys() == chosen.keys()
    assert all(torch.equal(found.weights[name], chosen[name]) for name in chosen)
    assert 0.1 < min(found.changes.values()) <= max(found.changes.values()) < 0.5


def test_the_runtime_says_what_pytorch_says(runtime, pinned_gguf, random_checkpoint, on, heldout_text, tmp_path):
    """Of the same weights, while the checkpoint's own are far away; an output that is none of them stays F32."""
    model = random_checkpoint("Llama", **SMALL, num_hidden_layers=3)
    types = TypeChoice(outtype="sherry_2p", token_embedding="f32", output="f32", overrides=[("ffn_down", "f32")])
    file = convert(model, tmp_path / "x.gguf", types=types, calibration=on).outfile
    limits = Limits(max_perplexity_change=0.2, max_kld=1e-3, min_top1=85)
    found = parity(Source(model), file, heldout_text, limits, ctx_size=128, max_chunks=8, threads=2)
    assert found.failures() == []
    embedding, cache, activations = (step.divergence for step in found.steps)
    assert embedding.kld_mean < 1e-9  # F32 in both: sums in another order are left
    assert cache.kld_mean < 1e-6
    assert activations.kld_mean > 10 * cache.kld_mean
    assert len(found.calibrated) == 3 * 6
    (note,) = found.notes()
    assert note.startswith(
        "the file was calibrated: PyTorch runs with the file's own weights in 18 layers, which differ"
    )

    # one scale of the file damaged: PyTorch reads it too, so that the runtime still says the same
    tensor = tensors_of(file)["blk.1.ffn_up.weight"]
    with file.open("r+b") as stored:
        stored.seek(tensor.data_offset + 20)
        stored.write(np.float16(0.5).tobytes())
    damaged = parity(Source(model), file, heldout_text, limits, ctx_size=128, max_chunks=8, threads=2)
    assert damaged.failures() == []
    assert damaged.total.base_perplexity != found.total.base_perplexity


def test_a_stock_type_for_some(runtime, pinned_gguf, random_checkpoint, on, heldout_text, tmp_path):
    """PyTorch has their weights as the file has them, too."""
    model = random_checkpoint("Llama", **{**SMALL, "intermediate_size": 384})
    file = convert(model, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=3.3)).outfile
    assert tensors_of(file)["blk.0.attn_v.weight"].tensor_type.name == "Q4_0"
    limits = Limits(max_perplexity_change=0.2, max_kld=1e-3, min_top1=85)
    found = parity(Source(model), file, heldout_text, limits, ctx_size=128, max_chunks=4, threads=2, split=False)
    assert found.failures() == []
    assert len(found.calibrated) == 14
    assert 0.05 < found.calibrated["model.layers.0.self_attn.v_proj.weight"] < 0.12


def test_from_the_command_line(runtime, pinned_gguf, random_checkpoint, on, heldout_text, tmp_path, capfd):
    model = random_checkpoint("Llama", **SMALL)
    file = convert(model, tmp_path / "x.gguf", types=TWO, calibration=on).outfile
    line = [str(model), str(file), "--text", str(heldout_text), "--ctx-size", "128", "--chunks", "4", "--no-split"]
    assert run_command("parity", [*line, "--min-top1", "85"]) == 0
    out = capfd.readouterr().out
    assert "note: the file was calibrated: PyTorch runs with the file's own weights in 14 layers" in out
    assert "+ all causes" in out
    assert "+ F16 KV cache" not in out


@pytest.mark.usefixtures("pinned_gguf")
def test_a_file_of_another_model(random_checkpoint, on, tmp_path):
    """Of the same shapes, and of fewer layers."""
    model = random_checkpoint("Llama", **SMALL)
    file = convert(model, tmp_path / "x.gguf", types=TWO, calibration=on).outfile
    other = remake(model, tmp_path / "other", lambda name, w: -w if name.endswith("layers.1.mlp.up_proj.weight") else w)
    with refused(r"its weights of model.layers.1.mlp.up_proj.weight are not near those of .*other; give the "):
        read_chosen(file, Checkpoint(other), Source(other))
    fewer = random_checkpoint("Llama", **SMALL, num_hidden_layers=1)
    with refused(r"blk.1.ffn_down.weight is no tensor of .*; give the GGUF's own checkpoint"):
        read_chosen(file, Checkpoint(fewer), Source(fewer))
    wider = random_checkpoint("Llama", **{**SMALL, "intermediate_size": 384})
    with refused(r"blk.0.ffn_down.weight has shape \[128, 256\], in .* it has \[128, 384\]; give the GGUF's own"):
        read_chosen(file, Checkpoint(wider), Source(wider))


@pytest.mark.usefixtures("pinned_gguf")
def test_a_file_whose_layers_have_another_type_now(random_checkpoint, on, tmp_path):
    """PyTorch would run the float weights, and the difference look like the runtime's."""
    model = random_checkpoint("Llama", **SMALL)
    file = convert(model, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on).outfile
    other = requantize(file, Q2_0, tmp_path / "other.gguf").outfile
    assert is_calibrated(other)
    with refused(r"other.gguf: was calibrated, and has no tensor of SHERRY or SHERRY_2P now; compare the file that "):
        read_chosen(other, Checkpoint(model), Source(model))


def test_a_layer_that_upstream_splits(sherry_gguf_file):
    """As it does with fused gate_up_proj of some architectures: the layer's rows are those of both tensors."""
    tensors = {tensor.name: tensor for tensor in open_gguf(sherry_gguf_file).tensors}
    up, gate = tensors["blk.0.ffn_up.weight"], tensors["blk.0.ffn_gate.weight"]
    rows, k = 768, 256

    class Fused(Checkpoint):
        def __init__(self):
            pass

        def load(self, name):
            return torch.zeros(2 * rows, k, dtype=torch.bfloat16)

    found = {}
    marked = calibrated._marked(0, (2 * rows, k)).numpy()
    calibrated._sort(up, marked[rows:][::-1], ["gate_up_proj"], Fused(), found)
    calibrated._sort(gate, marked[:rows], ["gate_up_proj"], Fused(), found)
    values = [torch.from_numpy(SHERRY.dequantize(tensor.rows)) for tensor in (gate, up)]
    assert torch.equal(found["gate_up_proj"], torch.cat([values[0], values[1].flip(0)]))
