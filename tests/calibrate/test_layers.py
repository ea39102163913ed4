"""The walk through small models: which statistics a layer gets, what is refused, and that it can be gone on with."""

from __future__ import annotations

import json

import pytest
import torch
from refusals import refused
from remaking import remake
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sherry_gguf.calibrate import layers as walk
from sherry_gguf.calibrate.decoder import Decoder
from sherry_gguf.calibrate.state import State
from sherry_gguf.calibrate.text import read_windows
from sherry_gguf.calibrate.watch import Watch, matrices
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.declared import SHERRY_LAYERS, matching

CPU = torch.device("cpu")
SMALL = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def names_of(checkpoint: Checkpoint) -> list[str]:
    return matching(SHERRY_LAYERS, checkpoint.names)


def calibrated(model, folder, *, tokens=1024, memory=1.0, facts="", text=None):
    checkpoint = Checkpoint(model)
    windows = torch.randint(4, 4096, (tokens // 128, 128), generator=torch.Generator().manual_seed(7))
    state = State(folder, {"facts": facts})
    return walk.calibrate(checkpoint, names_of(checkpoint), windows, state, planes=2, memory=memory)


def bytes_of(result: walk.Calibrated) -> dict[str, torch.Tensor]:
    return {name: result.load(name) for name in result.layer_of}


def spoil(model, folder, change):
    """A copy of a model, its tensors by name changed."""
    remake(model, folder, lambda _, w: w)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Llama", {}), ("Qwen3", {}), ("Mixtral", {"num_local_experts": 4}), ("Qwen3Moe", {}), ("Gemma2", {})],
)
def test_layers_compute_what_transformers_does(random_checkpoint, family, changes):
    """One at a time, and with the very inputs of each matrix: W H W^T is the norm of what it computes."""
    model = random_checkpoint(family, **SMALL, **changes)
    checkpoint = Checkpoint(model)
    decoder = Decoder(checkpoint, names_of(checkpoint), CPU)
    windows = torch.randint(4, 4096, (2, 64))
    hidden = torch.empty(2, 64, 128)
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        wanted = whole(windows, output_hidden_states=True).hidden_states
        decoder.embed(windows, hidden)
        assert torch.allclose(hidden, wanted[0], atol=1e-6)
        decoder.load(0)
        found = matrices(decoder.layers[0], f"{decoder.path}.0.", names_of(checkpoint), checkpoint.names)
        with Watch(found) as watch:
            out = torch.cat([decoder.forward(0, hidden[i : i + 1]) for i in range(2)])
    assert torch.allclose(out, wanted[1], atol=1e-4)
    assert {name for matrix in found for name in matrix.rows} == {n for n in names_of(checkpoint) if ".layers.0." in n}
    of = {name: watch.hessians.get(i) for i, matrix in enumerate(found) for name in matrix.rows}
    q, k, v, o = (of[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkvo")
    assert q is k is v is not o
    assert q.tokens == o.tokens == 128
    if "Mo" not in family and "Mixtral" not in family:
        gate, up, down = (of[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        assert gate is up is not down
    else:
        assert sum(watch.hessians[i].tokens for i, m in enumerate(found) if m.stack and len(m.rows) == 2) == 2 * 128
    decoder.free(0)
    assert all(parameter.is_meta for parameter in decoder.layers[0].parameters())


def test_interrupted_and_gone_on_with(random_checkpoint, tmp_path, monkeypatch):
    model = random_checkpoint("Llama", **SMALL)
    at_once = calibrated(model, tmp_path / "at once")
    quantize, calls = walk.quantize, []

    def stops(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return quantize(*args)

    monkeypatch.setattr(walk, "quantize", stops)
    with pytest.raises(KeyboardInterrupt):
        calibrated(model, tmp_path / "twice")
    folder = tmp_path / "twice"
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", "layer-0000.safetensors"]
    in_two = calibrated(model, folder)
    assert len(calls) == 6 + 4  # of the second layer: q, k and v; o; gate and up; down
    for name in ("layer-0000.safetensors", "layer-0001.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
    assert (in_two.weights, in_two.outputs, in_two.notes) == (at_once.weights, at_once.outputs, at_once.notes)
    calibrated(model, folder)
    assert len(calls) == 10
    calibrated(model, folder, facts="another text")
    assert len(calls) == 18


def test_activations_on_disk_give_the_same_bytes(random_checkpoint, tmp_path):
    model = random_checkpoint("Llama", **SMALL)
    in_memory = bytes_of(calibrated(model, tmp_path / "memory"))
    on_disk = bytes_of(calibrated(model, tmp_path / "disk", memory=1e-6))
    assert all(torch.equal(in_memory[name], on_disk[name]) for name in in_memory)


def test_experts_with_few_tokens_share_their_statistics(random_checkpoint, tmp_path):
    model = random_checkpoint("Qwen3Moe", **SMALL, num_experts=8, num_experts_per_tok=1)
    result = calibrated(model, tmp_path / "x")
    notes = [note for note in result.notes if "came to this expert" in note]
    assert notes
    assert all("it was quantized by the statistics of all 1024 that came" in note for note in notes)
    assert len(result.weights) == len(names_of(Checkpoint(model)))
    assert max(result.weights.values()) < 0.6


def test_dead_channels_are_named(random_checkpoint, tmp_path):
    def no_first_channel(state):
        state["model.layers.1.input_layernorm.weight"][3] = 0

    model = spoil(random_checkpoint("Llama", **SMALL), tmp_path / "m", no_first_channel)
    result = calibrated(model, tmp_path / "x")
    (note,) = result.notes
    assert note.startswith("model.layers.1.self_attn.q_proj.weight, model.layers.1.self_attn.k_proj.weight, ")
    assert "1 input channels are 0 in all of the text, the first 3" in note


def test_repeated_channels_are_named(random_checkpoint, tmp_path):
    """Two rows of gate and of up are the same, so that down is handed one channel twice."""

    def twice(state):
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            weights = state[f"model.layers.0.{name}.weight"]
            weights[9] = weights[5]

    model = spoil(random_checkpoint("Llama", **SMALL), tmp_path / "m", twice)
    result = calibrated(model, tmp_path / "x")
    assert result.notes == [
        "model.layers.0.mlp.down_proj.weight: 1 input channels are multiples of others in all of the text, the first 9 "
        "of 5; what keeps them apart is the 1% of its mean diagonal that is added to every H"
    ]
    assert result.outputs["model.layers.0.mlp.down_proj.weight"] < 0.5


def test_fewer_tokens_than_channels(random_checkpoint, tmp_path):
    result = calibrated(random_checkpoint("Llama", **SMALL), tmp_path / "x", tokens=128)
    assert max(result.outputs.values()) < 0.5
    assert result.notes == []  # it is said once, for all layers


def test_an_expert_that_no_token_came_to(random_checkpoint, tmp_path):
    """It is quantized all the same, by the statistics of the others, and named."""

    def never(state):
        router = state["model.layers.1.mlp.gate.weight"]
        router[1], router[2:] = -router[0], 0  # of the first two one is above 0

    model = random_checkpoint("Qwen3Moe", **SMALL, num_experts=4, num_experts_per_tok=1)
    result = calibrated(spoil(model, tmp_path / "m", never), tmp_path / "x")
    for expert in (2, 3):
        names = [f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")]
        said = " ".join(note for note in result.notes if names[0] in note)
        assert f"{names[0]}, {names[1]}: 0 tokens of the text came to this expert, fewer than the 128 weights" in said
        assert "it was quantized by the statistics of all 1024 that came to its layer's" in said
        assert max(result.weights[name] for name in names) < 0.5


def test_inputs_whose_squares_are_no_numbers(random_checkpoint, tmp_path):
    def huge(state):
        state["model.layers.1.post_attention_layernorm.weight"] *= 1e10

    model = spoil(random_checkpoint("Llama", **SMALL), tmp_path / "m", huge)
    with refused(
        r"model.layers.1.mlp.down_proj.weight: its inputs are so large that float32 does not hold the sum of their "
        r"squares over 1,024 tokens of the text; the model overflows there, as it would with other text$"
    ):
        calibrated(model, tmp_path / "x")


def test_activations_that_are_no_numbers(random_checkpoint, tmp_path):
    def nan(state):
        state["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan

    model = spoil(random_checkpoint("Llama", **SMALL), tmp_path / "m", nan)
    with refused(r"layer 1 of the float model makes NaN or infinities of window 0 of the text$"):
        calibrated(model, tmp_path / "x")


def test_layers_that_are_none(random_checkpoint, tmp_path):
    model = random_checkpoint("Llama", **SMALL)
    checkpoint = Checkpoint(model)
    windows = torch.randint(4, 4096, (1, 64))
    state = State(tmp_path / "x", {})
    with refused(r"model.layers.0.input_layernorm.weight: no token of the text passes it .*--sherry-layers"):
        walk.calibrate(checkpoint, ["model.layers.0.input_layernorm.weight"], windows, state, planes=2, memory=1.0)
    with refused(r"none of its linear layers is in a list of decoder layers of LlamaModel"):
        walk.calibrate(checkpoint, ["model.norm.weight"], windows, state, planes=2, memory=1.0)
    names = [*names_of(checkpoint), "model.layers.2.self_attn.q_proj.weight"]
    with refused(r"model.layers.2.self_attn.q_proj.weight: is in no decoder layer .*--sherry-layers"):
        walk.calibrate(checkpoint, names, windows, state, planes=2, memory=1.0)
    config = json.loads((model / "config.json").read_text())
    spoiled = spoil(model, tmp_path / "m", lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    (spoiled / "config.json").write_text(json.dumps(config))
    with refused(r"no tensor in it is model.layers.1.mlp.up_proj.weight of transformers' model$"):
        calibrated(spoiled, tmp_path / "y")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with refused(r"x: is no folder of a calibration; choose another --outfile$"):
        State(tmp_path / "x", {})
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"


def test_windows_of_a_text(tiny_checkpoint, heldout_text, tmp_path):
    checkpoint = Checkpoint(tiny_checkpoint)
    few = read_windows(heldout_text, checkpoint, 2048, seed=0)
    assert few.tokens.shape == (4, 512)
    assert (few.tokens[:, 0] == 1).all()  # BOS
    assert torch.equal(few.tokens, read_windows(heldout_text, checkpoint, 2048, seed=0).tokens)
    assert not torch.equal(few.tokens, read_windows(heldout_text, checkpoint, 2048, seed=1).tokens)
    every = read_windows(heldout_text, checkpoint, 10**9, seed=0)
    assert len(every.tokens.unique(dim=0)) == len(every.tokens) > 30
    short = tmp_path / "short.txt"
    short.write_text("We the people. " * 9)
    with refused(r"short.txt: its [\d]+ tokens are less than one window of 511; calibration wants some ten thousand"):
        read_windows(short, checkpoint, 2048, seed=0)
    short.write_bytes(b"\xff\xfe\x00")
    with refused(r"short.txt: is no UTF-8 text, invalid start byte at byte 0$"):
        read_windows(short, checkpoint, 2048, seed=0)
    with refused(r"absent.txt: No such file or directory$"):
        read_windows(tmp_path / "absent.txt", checkpoint, 2048, seed=0)
