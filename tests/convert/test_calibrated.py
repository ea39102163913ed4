"""Plain models to planes of Sherry on a text, from the command line to the bytes of the file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from reading import field, tensors_of, values_of
from refusals import refused
from remaking import remake
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sherry_gguf.calibrate.text import read_windows
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert, verify
from sherry_gguf.convert.calibrated import Calibration
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.weights.two_planes import round_planes

pytestmark = pytest.mark.usefixtures("pinned_gguf")

SMALL = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
TWO = TypeChoice(outtype="sherry_2p")


@pytest.fixture
def on(heldout_text):
    return Calibration(heldout_text, tokens=1024)


@pytest.fixture(scope="module")
def plain(random_checkpoint):
    return random_checkpoint("Llama", **SMALL)


def test_from_the_command_line(plain, heldout_text, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    line = ["convert", str(plain), "--outtype", "sherry", "--outfile", str(out)]
    assert main([*line, "--calibrate", str(heldout_text), "--calibrate-tokens", "1024", "--seed", "3"]) == 0
    printed, warned = capsys.readouterr()
    assert "warning: one plane is for models that are trained as Sherry" in warned
    assert "14 calibrated Sherry layers" in printed
    assert "calibration changed the weights of 14 matrices on purpose: their outputs on the text differ by" in printed
    assert (
        "verified: 14 SHERRY tensors, 294,912 weights, are bit by bit those that calibration chose; 7 other" in printed
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert field(out, "sherry.calibration.text_sha256") == hashlib.sha256(heldout_text.read_bytes()).hexdigest()
    assert (field(out, "sherry.calibration.tokens"), field(out, "sherry.calibration.seed")) == (1024, 3)
    assert field(out, "general.file_type") == 512


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_two_planes(random_checkpoint, on, family, tmp_path):
    directory = random_checkpoint(family, **SMALL)
    found = convert(directory, tmp_path / "x.gguf", types=TWO, calibration=on)
    assert str(found.verdict).startswith("verified: 14 SHERRY_2P tensors, ")
    assert found.bits_per_weight("SHERRY_2P") == 2.75
    assert (field(found.outfile, "general.file_type"), field(found.outfile, "sherry.format_version")) == (521, 2)
    stored = load_file(directory / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].float().numpy()
    written = values_of(found.outfile)["blk.1.ffn_down.weight"]
    error = float(np.linalg.norm(written - stored) / np.linalg.norm(stored))
    assert 0.1 < error < 0.5
    assert error == pytest.approx(found.losses["model.layers.1.mlp.down_proj.weight"], rel=1e-4)
    one = convert(directory, tmp_path / "1.gguf", types=TypeChoice(outtype="sherry"), calibration=on)
    assert max(found.losses.values()) < min(one.losses.values())


def test_the_head_too(random_checkpoint, heldout_text, tmp_path, capsys):
    """On the last hidden states: its outputs on the text are nearer to the float head's than by rounding."""
    model = random_checkpoint("Llama", **SMALL, tie_word_embeddings=False)
    out = tmp_path / "x.gguf"
    line = ["convert", str(model), "--outtype", "sherry_2p", "--output-tensor-type", "sherry_2p", "--outfile", str(out)]
    assert main([*line, "--calibrate", str(heldout_text), "--calibrate-tokens", "1024"]) == 0
    assert "verified: 15 SHERRY_2P tensors" in capsys.readouterr().out
    tensors = tensors_of(out)
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    head = load_file(model / "model.safetensors")["lm_head.weight"].float()
    states = hidden_states(model, read_windows(heldout_text, Checkpoint(model), 1024, seed=0).tokens)
    change = torch.from_numpy(SHERRY_2P.dequantize(tensors["output.weight"].data)) - head
    rounded = torch.from_numpy(SHERRY_2P.dequantize(round_planes(head.numpy()))) - head
    assert 0.05 < change.norm() / head.norm() < 0.4
    assert (states @ change.T).norm() < 0.8 * (states @ rounded.T).norm()


def hidden_states(model, windows):
    """float32[tokens, hidden]: what the head of a model multiplies with."""
    with torch.inference_mode():
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return whole.model(windows).last_hidden_state.flatten(0, 1)


def test_a_head_that_cannot_be_calibrated(plain, on, random_checkpoint, tmp_path):
    two = replace(TWO, head=True)
    tied = random_checkpoint("Llama", **SMALL, tie_word_embeddings=True)
    with refused(r"its output is its embedding; calibrated is only one of its own; choose another .*-tensor-type"):
        convert(tied, tmp_path / "x.gguf", types=two, calibration=on)
    narrow = random_checkpoint("Llama", hidden_size=96, intermediate_size=256, head_dim=32, tie_word_embeddings=False)
    with refused(r"lm_head.weight: rows of 96 weights are no multiple of 128, which SHERRY_2P needs; choose another"):
        convert(narrow, tmp_path / "x.gguf", types=two, calibration=on)


def test_rows_that_are_no_whole_blocks(random_checkpoint, on, tmp_path):
    directory = random_checkpoint("Llama", hidden_size=96, intermediate_size=256, head_dim=32)
    found = convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on)
    types = {name: tensor.tensor_type.name for name, tensor in tensors_of(found.outfile).items()}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.attn_output.weight"]) == ("SHERRY", "SHERRY")
    assert (types["blk.0.ffn_up.weight"], types["blk.1.attn_q.weight"]) == ("Q8_0", "Q8_0")
    (note,) = (note for note in found.notes if "are kept" in note)
    assert note.startswith("10 linear layers are kept, because rows of 96 weights are no multiple of 128; they are st")
    assert note.endswith("self_attn.v_proj (2)")
    narrow = random_checkpoint("Llama", hidden_size=96, intermediate_size=96, num_attention_heads=3, head_dim=32)
    with refused(
        r"of its 14 linear layers none has rows that are a multiple of 128, which SHERRY needs; the first is "
    ):
        convert(narrow, tmp_path / "y.gguf", types=TypeChoice(outtype="sherry"), calibration=on)


def test_a_layer_with_a_type_of_its_own_is_not_changed(plain, on, tmp_path):
    types = TypeChoice(outtype="sherry", overrides=[("ffn_down", "f32")])
    found = convert(plain, tmp_path / "x.gguf", types=types, calibration=on)
    stored = load_file(plain / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float().numpy()
    assert np.array_equal(values_of(found.outfile)["blk.0.ffn_down.weight"], stored)
    assert len(found.losses) == 12


def test_experts_with_a_type_of_their_own(random_checkpoint, on, tmp_path):
    """Upstream's converter names one tensor of the checkpoint for all that it stacks."""
    directory = random_checkpoint("Mixtral", **SMALL, num_local_experts=4)
    types = TypeChoice(outtype="sherry", overrides=[("ffn_down_exps", "f32")])
    with refused(r"its experts are calibrated all or not at all, and a type of its own .*--sherry-layers"):
        convert(directory, tmp_path / "x.gguf", types=types, calibration=on)


def test_nothing_is_written_or_calibrated_dry(plain, on, tmp_path, random_checkpoint):
    found = convert(plain, tmp_path / "x.gguf", types=TWO, calibration=on, dry_run=True)
    assert found.bits_per_weight("SHERRY_2P") == 2.75
    assert not list(tmp_path.iterdir())
    assert not [note for note in found.notes if "longest rows" in note]
    mixed = convert(plain, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=3), dry_run=True)
    assert "here all are planes: calibration finds the matrices that get a stock type" in mixed.notes
    few = convert(plain, tmp_path / "x.gguf", types=TWO, calibration=replace(on, tokens=128), dry_run=True)
    assert not [note for note in few.notes if "longest rows" in note]  # one window has 512
    wide = random_checkpoint("Llama", hidden_size=128, intermediate_size=640, head_dim=32)
    few = convert(wide, tmp_path / "x.gguf", types=TWO, calibration=replace(on, tokens=128), dry_run=True)
    assert "the 512 tokens are fewer than the 640 weights of the longest rows: with more" in few.notes[0]


def test_what_is_finished_is_kept_until_the_file_is_there(plain, on, tmp_path, monkeypatch):
    def fails(*_):
        raise SherryError("no")

    with monkeypatch.context() as patch:
        patch.setattr("sherry_gguf.convert.pipeline.verify_file", fails)
        with pytest.raises(SherryError, match=r"^no$"):
            convert(plain, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on)
    folder = tmp_path / "x.gguf.calibration"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("layer-*")}
    assert len(before) == 2
    with monkeypatch.context() as patch:
        patch.setattr("sherry_gguf.calibrate.layers.quantize", fails)
        convert(plain, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_refusal_leaves_nothing(plain, on, tmp_path):
    def infinite(name, w):
        return w.fill_(3e38) if "layers.0.mlp.down" in name else w

    model = remake(plain, tmp_path / "m", infinite)
    with refused(r"layer 0 of the float model makes NaN or infinities"):
        convert(model, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_bit_that_is_another_is_found(plain, on, tmp_path, monkeypatch):
    """The second reading is not that of the writer: a code of the file is changed between the two."""
    original = verify.verify

    def after_damage(files, *args):
        (path,) = files
        tensor = tensors_of(path)["blk.0.ffn_down.weight"]
        with path.open("r+b") as file:
            file.seek(int(tensor.data_offset))
            byte = file.read(1)
            file.seek(int(tensor.data_offset))
            file.write(bytes([byte[0] ^ 1]))
        return original(files, *args)

    monkeypatch.setattr("sherry_gguf.convert.pipeline.verify_file", after_damage)
    with refused(r"blk.0.ffn_down.weight of the file is not what calibration chose$"):
        convert(plain, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"), calibration=on)


@pytest.mark.parametrize("outtype", [None, "auto", "q2_0", "stq1_0"])
def test_types_that_are_not_for_it(plain, on, outtype, tmp_path):
    with refused(r"calibration is for SHERRY_2P and SHERRY, and .* was asked for; give --outtype sherry_2p$"):
        convert(plain, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype), calibration=on)


def test_a_model_that_is_sherry(random_checkpoint, tiny_checkpoint, sherry_config, on, tmp_path):
    for directory in (tiny_checkpoint, random_checkpoint("Llama", sherry=sherry_config, **SMALL)):
        with refused(r"was trained as Sherry, and is exact as it is; leave out --calibrate$"):
            convert(directory, tmp_path / "x.gguf", types=TWO, calibration=on)


def test_more_bits_for_some(random_checkpoint, heldout_text, tmp_path, capsys):
    """Rows of 384 are no multiples of 256, so that nothing is needed that has to be built."""
    model = random_checkpoint("Llama", hidden_size=128, intermediate_size=384, head_dim=32)
    stored = load_file(model / "model.safetensors")
    out = tmp_path / "x.gguf"
    line = ["convert", str(model), "--outtype", "sherry_2p", "--outfile", str(out), "--calibrate", str(heldout_text)]
    assert main([*line, "--calibrate-tokens", "1024", "--bpw", "3.3"]) == 0
    printed = capsys.readouterr().out
    tensors = {
        name: tensor for name, tensor in tensors_of(out).items() if name.startswith("blk") and "norm" not in name
    }
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert set(types.values()) == {"SHERRY_2P", "Q4_0"}
    weights, n_bytes = (sum(int(getattr(t, of)) for t in tensors.values()) for of in ("n_elements", "n_bytes"))
    assert 3.2 < 8 * n_bytes / weights <= 3.3
    stock = [name for name, kind in types.items() if kind == "Q4_0"]
    assert f"\n{len(stock)} of 14 matrices are the checkpoint's in a stock type, {len(stock)} as q4_0: " in printed
    assert f"changed the weights of {14 - len(stock)} matrices on purpose" in printed
    assert f"verified: {14 - len(stock)} SHERRY_2P tensors" in printed
    values = values_of(out)
    theirs = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.up_proj"}
    for i, (place, name) in product(range(2), theirs.items()):
        weights = stored[f"model.layers.{i}.{name}.weight"].float().numpy()
        error = np.linalg.norm(values[f"blk.{i}.{place}.weight"] - weights) / np.linalg.norm(weights)
        assert (error < 0.12) == (f"blk.{i}.{place}.weight" in stock)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_budget_that_buys_nothing(plain, on, tmp_path):
    with refused(r"2.75 bits a weight were asked for, and SHERRY_2P takes 2.75 already$"):
        convert(plain, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=2.75))
    found = convert(plain, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=2.76))
    assert found.bits_per_weight("SHERRY_2P") == 2.75
    assert "2.76 bits a weight leave no matrix a stock type: that takes more" in found.notes


def test_experts_keep_their_planes(random_checkpoint, on, tmp_path):
    model = random_checkpoint("Mixtral", hidden_size=128, intermediate_size=384, head_dim=32, num_local_experts=4)
    found = convert(model, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=4))
    types = {name: t.tensor_type.name for name, t in tensors_of(found.outfile).items() if name.startswith("blk.")}
    assert {kind for name, kind in types.items() if "_exps" in name} == {"SHERRY_2P"}
    assert {"Q8_0"} == {kind for name, kind in types.items() if re.search(r"attn_[qkvo]\w*\.weight", name)}


def test_a_budget_that_buys_everything(random_checkpoint, on, tmp_path):
    model = random_checkpoint("Llama", hidden_size=128, intermediate_size=384, head_dim=32)
    found = convert(model, tmp_path / "x.gguf", types=TWO, calibration=replace(on, bits=20))
    types = {t.tensor_type.name for name, t in tensors_of(found.outfile).items() if name.startswith("blk.")}
    assert types == {"F32", "Q8_0"}
    assert found.losses == {}
    assert any(note.startswith("14 of 14 matrices are the checkpoint's in a stock type") for note in found.notes)


@pytest.mark.parametrize("flags", [["--seed", "1"], ["--memory", "2"], ["--calibrate-tokens", "9"], ["--bpw", "3"]])
def test_flags_of_a_calibration_alone(plain, flags, capsys):
    assert main(["convert", str(plain), *flags]) == 1
    assert "belong to --calibrate" in capsys.readouterr().err
    assert main(["convert", str(plain), "--calibrate", "x", flags[0], "-1"]) == 1
    assert "are no negative numbers" in capsys.readouterr().err


def test_without_it_nothing_is_rounded(plain, tmp_path):
    with refused(r"floating-point weights without a pattern of zeros"):
        convert(plain, tmp_path / "x.gguf", types=TWO)
