"""Scales and rows that SHERRY does not have: SHERRY_G32 by default, tensor by tensor, and SHERRY where that fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reading import field, tensors_of, values_of
from refusals import refused
from remaking import remake
from safetensors.torch import load_file
from trainer import stored_forward

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.cli import main
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.verify import verify
from sherry_gguf.errors import SherryError
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")


def keys(path):
    return field(path, "general.file_type"), field(path, "sherry.format_version")


def types_of(report):
    """What comes after blk.N. -> type, for the Sherry layers of the last block."""
    layers = [t for t in report.tensors if t.tensor_class in ("attention", "feed-forward", "experts")]
    return {t.name.split(".", 2)[2].removesuffix(".weight"): t.type_name for t in layers}


def weights_of(directory, name):
    return load_file(directory / "model.safetensors")[f"model.layers.1.{name}.weight"]


WIDE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 768}
ODD = {"hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 5, "intermediate_size": 640}


@pytest.mark.parametrize(("size", "sizes"), [(32, {}), (64, {}), (96, WIDE), (160, ODD)])
def test_group_sizes(random_checkpoint, sherry_config, tmp_path, size, sizes):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": size}, **sizes)
    report = convert(directory, tmp_path / "x.gguf")
    assert set(types_of(report).values()) == {"SHERRY_G32"}
    assert keys(report.outfile) == (520, 2)
    assert report.bits_per_weight("SHERRY_G32") == 1.75
    assert report.notes == []
    assert str(report.verdict).startswith("verified: 14 SHERRY_G32 tensors")
    found = values_of(report.outfile)
    for ours, theirs in (("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        expected = stored_forward(weights_of(directory, theirs), size)
        assert np.array_equal(found[f"blk.1.{ours}.weight"], expected), ours


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("hidden", [576, 96])
def test_each_row_length_has_its_type(random_checkpoint, sherry_config, tmp_path, granularity, hidden):
    """Rows of o and down are multiples of 128, the others are not."""
    sherry = {**sherry_config, "granularity": granularity}
    directory = random_checkpoint("Llama", sherry=sherry, hidden_size=hidden, intermediate_size=1152)
    report = convert(directory, tmp_path / "x.gguf")
    types = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), "SHERRY_G32")
    assert types_of(report) == {**types, "attn_output": "SHERRY", "ffn_down": "SHERRY"}
    assert keys(report.outfile) == (520, 2)
    found = values_of(report.outfile)
    for ours, theirs in (("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")):
        w = weights_of(directory, theirs)
        length = w.shape[1] if granularity == "per_channel" else w.numel()
        assert np.array_equal(found[f"blk.1.{ours}.weight"], stored_forward(w, length)), ours


def bake(sizes, tiny_checkpoint, directory):
    def change(name, w):
        layer = name.split(".")[-2]
        return torch.from_numpy(quantize(w.float().numpy(), Granularity("per_group", sizes.get(layer, 128))).weights())

    return remake(tiny_checkpoint, directory, change)


@pytest.mark.parametrize(
    ("finer", "file_type"),
    [(("k_proj", "v_proj"), 512), (("q_proj", "o_proj"), 512), (("gate_proj", "up_proj", "k_proj"), 520)],
)
def test_the_file_is_named_after_the_type_of_most_weights(tiny_checkpoint, tmp_path, finer, file_type):
    """Three matrices of seven can have more than half of the weights; the version is that of the newest type."""
    model = bake(dict.fromkeys(finer, 32), tiny_checkpoint, tmp_path / "model")
    report = convert(model, tmp_path / "x.gguf")
    tensors = {name: [t for t in report.tensors if t.type_name == name] for name in ("SHERRY", "SHERRY_G32")}
    of_128, of_32 = (sum(t.n_weights for t in found) for found in tensors.values())
    assert len(tensors["SHERRY"]) > len(tensors["SHERRY_G32"]) == 6 * len(finer)
    assert (of_32 > of_128) == (file_type == 520)
    assert keys(report.outfile) == (file_type, 2)
    assert str(report.verdict).startswith("verified: 42 SHERRY and SHERRY_G32 tensors, 4,718,592 weights")


def finer_below(tiny_checkpoint, directory, layer, first):
    """Baked with a scale per 128 weights, but per 32 in the rows of one layer from ``first`` on."""

    def change(name, w):
        baked = quantize(w.float().numpy(), Granularity("per_group", 128)).weights()
        if name.endswith(f"{layer}.weight"):
            baked[first:] = quantize(w[first:].float().numpy(), Granularity("per_group", 32)).weights()
        return torch.from_numpy(baked)

    return remake(tiny_checkpoint, directory, change)


@pytest.mark.parametrize("first", [64, 767])
def test_rows_below_the_sample_count_too(tiny_checkpoint, tmp_path, first):
    """The family of a matrix is told by its first 64 rows, its type by all of them: a single last one is enough."""
    model = finer_below(tiny_checkpoint, tmp_path / "model", "mlp.up_proj", first)
    report = convert(model, tmp_path / "x.gguf")
    types = types_of(report)
    assert types.pop("ffn_up") == "SHERRY_G32"
    assert set(types.values()) == {"SHERRY"}
    w = weights_of(model, "mlp.up_proj").half().float().numpy()
    assert np.array_equal(values_of(report.outfile)["blk.1.ffn_up.weight"], w)
    with refused(r"weights do not fit SHERRY and would change.* 6 of 42 tensors .*; --outtype auto takes for each"):
        convert(model, tmp_path / "y.gguf", types=TypeChoice(outtype="sherry"))


def test_baked_with_empty_runs(tiny_checkpoint, tmp_path):
    def change(_, w):
        w = w.float().numpy().copy()
        w.reshape(-1, 32)[::7] = 0
        return torch.from_numpy(quantize(w, Granularity("per_group", 32)).weights())

    model = remake(tiny_checkpoint, tmp_path / "model", change)
    report = convert(model, tmp_path / "x.gguf")
    assert set(types_of(report).values()) == {"SHERRY_G32"}
    w = weights_of(model, "mlp.down_proj").half().float().numpy()
    assert np.array_equal(values_of(report.outfile)["blk.1.ffn_down.weight"], w)


def test_experts(random_checkpoint, sherry_config, tmp_path):
    sherry = {**sherry_config, "granularity": "per_channel"}
    directory = random_checkpoint("Qwen3Moe", sherry=sherry, moe_intermediate_size=96)
    report = convert(directory, tmp_path / "x.gguf")
    types = types_of(report)
    assert (types["ffn_down_exps"], types["ffn_up_exps"], types["attn_q"]) == ("SHERRY_G32", "SHERRY", "SHERRY")
    found = values_of(report.outfile)["blk.1.ffn_down_exps.weight"]
    checkpoint = Checkpoint(directory)
    for expert in range(4):
        w = checkpoint.load(f"model.layers.1.mlp.experts.{expert}.down_proj.weight")
        assert np.array_equal(found[expert], stored_forward(w, 96))


def test_what_sherry_holds_stays_sherry(tiny_checkpoint, sherry_gguf_file, tmp_path):
    """Byte for byte, and of version 1, which older readers take."""
    assert keys(sherry_gguf_file) == (512, 1)
    assert {t.tensor_type.name for t in tensors_of(sherry_gguf_file).values()} == {"F32", "Q8_0", "SHERRY"}
    for outtype in ("sherry", "auto"):
        made = convert(tiny_checkpoint, tmp_path / f"{outtype}.gguf", types=TypeChoice(outtype=outtype)).outfile
        assert made.read_bytes() == sherry_gguf_file.read_bytes()


@pytest.mark.parametrize(
    "sherry", [{"group_size": 256}, {"granularity": "per_channel"}, {"granularity": "per_tensor"}], ids=str
)
def test_what_sherry_holds_with_longer_runs_stays_sherry(random_checkpoint, sherry_config, tmp_path, sherry):
    directory = random_checkpoint("Llama", sherry={**sherry_config, **sherry})
    report = convert(directory, tmp_path / "x.gguf")
    assert set(types_of(report).values()) == {"SHERRY"}
    assert keys(report.outfile) == (512, 1)


def test_asked_for(tiny_checkpoint, sherry_gguf_file, tmp_path):
    """It holds what SHERRY holds, in more bytes."""
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry_g32"))
    assert set(types_of(report).values()) == {"SHERRY_G32"}
    assert keys(report.outfile) == (520, 2)
    expected, found = values_of(sherry_gguf_file), values_of(report.outfile)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


def test_sherry_asked_for_by_name_is_sherry_or_nothing(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 32})
    with refused(r"[\d,]+ of 131,072 weights do not fit SHERRY .* 14 of 14 .*; --outtype sherry_g32 holds all$"):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"))
    narrow = random_checkpoint("Llama", sherry={**sherry_config, "granularity": "per_channel"}, hidden_size=96)
    with refused(
        r"rows of 96 weights do not fit SHERRY: .*; --outtype auto takes for each the smallest type that holds"
    ):
        convert(narrow, tmp_path / "x.gguf", types=TypeChoice(outtype="sherry"))
    assert not list(tmp_path.iterdir())


def test_what_neither_type_holds_is_refused(random_checkpoint, sherry_config, tmp_path):
    """Scales per 16, and rows that are no multiple of 32; of a model only the tensors of which that is true."""
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 16})
    with refused(r"weights do not fit SHERRY and would change.* 14 of 14 tensors .*; --tensor-type '.*=f16' stores"):
        convert(directory, tmp_path / "x.gguf")
    sherry = {**sherry_config, "granularity": "per_channel"}
    narrow = random_checkpoint("Llama", sherry=sherry, intermediate_size=144)
    with refused(r"rows of 144 weights do not fit SHERRY: .*; 2 of 14 tensors .*; --tensor-type 'ffn_down=f16' stores"):
        convert(narrow, tmp_path / "x.gguf")


def test_damage_is_found(random_checkpoint, sherry_config, tmp_path):
    """A bit of a code, of the signs, and of a scale: found by comparing with the checkpoint, and located."""
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 32})
    checkpoint = Checkpoint(directory)
    job = Job(checkpoint, make_plan(checkpoint), TypeChoice(), as_trained=True)
    file = convert(directory, tmp_path / "x.gguf", verify=False).outfile
    assert verify([file], open_model(replace(job), file)).sherry.tensors == 14
    tensor = tensors_of(file)["blk.1.ffn_up.weight"]
    block = tensor.data_offset + 2 * tensor.data.shape[1] + 3 * 7
    for offset, bit, group in ((1, 4, 25), (4, 1 << 5, 29), (5, 1, 24)):
        content = bytearray(file.read_bytes())
        content[block + offset] ^= bit
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(SherryError, match=rf"ffn_up\.weight, row 2, group {group} "):
            verify([tmp_path / "damaged.gguf"], open_model(replace(job), file))


def test_on_the_command_line(random_checkpoint, sherry_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = random_checkpoint("Llama")
    declared = ["convert", str(directory), "--granularity", "per_group", "--group-size", "32"]
    assert main(declared) == 0
    said = capsys.readouterr().out
    assert "SHERRY_G32" in said
    (made,) = directory.glob("*.gguf")
    assert made.name.endswith("-SHERRY_G32.gguf")
    assert main([*declared, "--outtype", "SHERRY_G32", "--outfile", "named.gguf"]) == 0
    assert (tmp_path / "named.gguf").read_bytes() == made.read_bytes()
    assert main(["requantize", "named.gguf", "--outtype", "q4_0", "--outfile", "q4_0.gguf"]) == 0
    assert main([*declared, "--outtype", "q4_0", "--outfile", "made.gguf"]) == 0
    assert values_of(tmp_path / "q4_0.gguf").keys() == values_of(tmp_path / "made.gguf").keys()
    for name, tensor in tensors_of(tmp_path / "q4_0.gguf").items():
        assert np.array_equal(tensor.data, tensors_of(tmp_path / "made.gguf")[name].data), name
    assert main(["requantize", "q4_0.gguf", "--outtype", "sherry_g32", "--outfile", "back.gguf"]) == 0
    assert keys(tmp_path / "back.gguf") == (520, 2)
    assert main(["inspect", "back.gguf"]) == 0
    assert "id 520 (14 tensors): SHERRY_G32, a private id of this project" in capsys.readouterr().out
