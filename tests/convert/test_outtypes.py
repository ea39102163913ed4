"""Sherry layers in types that llama.cpp has without the patch: held exactly, or refused with what would change."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from reading import field, tensors_of, values_of
from remaking import remake
from safetensors.torch import load_file, save_file
from trainer import stored_forward

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.model import Job, open_model
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.convert.verify import verify
from sherry_gguf.errors import SherryError
from sherry_gguf.formats.table import named
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

pytestmark = pytest.mark.usefixtures("pinned_gguf")

FILE_TYPES = {"q4_0": 2, "tq1_0": 36, "tq2_0": 37, "q2_0": 41}  # LLAMA_FTYPE_MOSTLY_* of llama.h


def keys(path):
    return field(path, "general.file_type"), field(path, "sherry.format_version")


def types_of(report):
    """What comes after blk.N. -> type, for the Sherry layers; the same in all blocks."""
    layers = [t for t in report.tensors if t.tensor_class in ("attention", "feed-forward", "experts")]
    found = {t.name.split(".", 2)[2]: t.type_name for t in layers}
    assert all(found[t.name.split(".", 2)[2]] == t.type_name for t in layers)
    return found


@pytest.mark.parametrize("outtype", ["q2_0", "q4_0"])
def test_the_shipped_checkpoint(tiny_checkpoint, sherry_gguf_file, tmp_path, outtype):
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype))
    assert set(types_of(report).values()) == {outtype.upper()}
    assert keys(report.outfile) == (
        FILE_TYPES[outtype],
        None,
    )
    assert str(report.verdict).startswith(f"verified: 42 {outtype.upper()} tensors, 4,718,592 weights, all codes equal")
    expected = values_of(sherry_gguf_file)
    found = values_of(report.outfile)
    assert len(found) == 42
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    embeddings = [tensors_of(path)["token_embd.weight"].data for path in (sherry_gguf_file, report.outfile)]
    assert np.array_equal(*embeddings)


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0"])
def test_scales_of_128_do_not_fit_blocks_of_256(tiny_checkpoint, tmp_path, outtype):
    """Of each block the run of the smaller scale would change, unless both are the same in fp16."""
    w = load_file(tiny_checkpoint / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    magnitudes = np.abs(stored_forward(w, 128)).reshape(-1, 256)
    changed = np.count_nonzero((magnitudes != magnitudes.max(axis=1, keepdims=True)) & (magnitudes != 0))
    message = (
        rf"blk\.0\.ffn_down\.weight: at least {changed:,} of {w.numel():,} weights do not fit {outtype.upper()} and "
        r"would change: its blocks have 256 weights and one scale; 42 of 42 tensors do not fit, "
        r"with [\d,]+ of 4,718,592 weights; q2_0 holds all of them$"
    )
    with pytest.raises(SherryError, match=message):
        convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0", "q2_0", "q4_0"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_coarse_scales_fit_all(random_checkpoint, sherry_config, tmp_path, granularity, outtype):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "granularity": granularity})
    report = convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype))
    w = load_file(directory / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    run = w.shape[1] if granularity == "per_channel" else w.numel()
    assert np.array_equal(values_of(report.outfile)["blk.1.ffn_down.weight"], stored_forward(w, run))
    assert set(types_of(report).values()) == {outtype.upper()}
    assert keys(report.outfile) == (
        FILE_TYPES[outtype],
        None,
    )
    assert report.verdict.sherry.tensors == 14
    slow = ["14 tensors are Q2_0, which is slow on x86", "14 of them would be as exact in TQ2_0"]
    assert len(report.notes) == (2 if outtype == "q2_0" else 0)
    assert all(note.startswith(words) for note, words in zip(report.notes, slow, strict=False))


def test_q2_0_is_said_to_be_slow_also_where_nothing_else_fits(tiny_checkpoint, tmp_path):
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype="q2_0"), dry_run=True)
    (note,) = report.notes
    assert note.startswith("42 tensors are Q2_0, which is slow on x86")
    assert not list(tmp_path.iterdir())


def test_scales_of_32(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 32})
    for outtype, holder in (("sherry", "sherry_g32"), ("tq1_0", "q4_0"), ("tq2_0", "q4_0"), ("q2_0", "q4_0")):
        with pytest.raises(SherryError, match=rf"do not fit {outtype.upper()} .* {holder} holds all of them$"):
            convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype))
    w = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    for outtype, name, numbers in (("q4_0", "Q4_0", (2, None)), ("auto", "SHERRY_G32", (520, 2))):
        report = convert(directory, tmp_path / f"{outtype}.gguf", types=TypeChoice(outtype=outtype))
        assert set(types_of(report).values()) == {name}
        assert keys(report.outfile) == numbers
        assert np.array_equal(values_of(report.outfile)["blk.0.ffn_up.weight"], stored_forward(w, 32))


def test_scales_of_16_fit_no_block(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 16})
    with pytest.raises(SherryError, match=r"do not fit Q4_0 .*; store the tensors that match .*\|ffn_up as f16$"):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="q4_0"))
    report = convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="auto"))
    assert set(types_of(report).values()) == {"F16"}
    assert report.notes == ["14 tensors fit no ternary type, and are stored as F16"]
    assert field(report.outfile, "general.file_type") == 1
    w = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert np.array_equal(values_of(report.outfile)["blk.0.ffn_up.weight"], stored_forward(w, 16))


def test_rows_that_do_not_fit(random_checkpoint, sherry_config, tmp_path):
    sherry = {**sherry_config, "granularity": "per_channel"}
    directory = random_checkpoint("Llama", sherry=sherry, hidden_size=384, num_attention_heads=6)
    with pytest.raises(
        SherryError, match=r"rows of 384 weights do not fit TQ2_0: .*; 12 of 14 tensors .* q2_0 holds all of them"
    ):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="tq2_0"))
    assert convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="q2_0")).verdict.sherry.tensors == 14


def test_an_empty_run_beside_another_fits(tiny_checkpoint, tmp_path):
    """Scales of 128, of which every second run has only zeros: one scale per 256 holds them."""
    shutil.copytree(tiny_checkpoint, tmp_path / "half")
    state = load_file(tmp_path / "half" / "model.safetensors")
    for name, w in state.items():
        if name.endswith("_proj.weight"):
            w.view(-1, 2, 128)[:, 1] = 0
    save_file(state, tmp_path / "half" / "model.safetensors")
    sherry = convert(Source(tmp_path / "half", granularity=Granularity()), tmp_path / "sherry.gguf")
    for outtype in ("tq1_0", "tq2_0"):
        outfile = tmp_path / f"{outtype}.gguf"
        convert(Source(tmp_path / "half", granularity=Granularity()), outfile, types=TypeChoice(outtype=outtype))
        found = values_of(outfile)
        for name, values in values_of(sherry.outfile).items():
            assert np.array_equal(found[name], values), name


@pytest.fixture
def mixed(tiny_checkpoint, tmp_path):
    """Baked layers that differ in who shares a scale, and some with zeros where SHERRY can have none."""
    sizes = {"q_proj": 128, "k_proj": 64, "v_proj": 32, "o_proj": 128, "down_proj": 8}

    def change(name, w):
        layer = name.split(".")[-2]
        granularity = Granularity("per_group", sizes[layer]) if layer in sizes else Granularity("per_channel")
        baked = quantize(w.float().numpy(), granularity).weights()
        if layer == "gate_proj":
            baked[100, 32:64] = 0  # behind the rows that a plan looks at
        return torch.from_numpy(baked)

    return remake(tiny_checkpoint, tmp_path / "mixed", change)


def test_auto_takes_the_smallest_for_each_tensor(mixed, tmp_path):
    report = convert(mixed, tmp_path / "x.gguf", types=TypeChoice(outtype="auto"))
    assert types_of(report) == {
        "attn_q.weight": "SHERRY",
        "attn_k.weight": "SHERRY_G32",
        "attn_v.weight": "SHERRY_G32",
        "attn_output.weight": "SHERRY",
        "ffn_gate.weight": "TQ1_0",
        "ffn_up.weight": "SHERRY",
        "ffn_down.weight": "F16",
    }
    assert keys(report.outfile) == (512, 2)
    assert str(report.verdict).startswith("verified: 36 SHERRY and SHERRY_G32 and TQ1_0 tensors")
    assert report.notes == ["6 tensors fit no ternary type, and are stored as F16"]
    found = values_of(report.outfile)
    state = load_file(mixed / "model.safetensors")
    names = {"v": "self_attn.v_proj", "output": "self_attn.o_proj"}
    names = {f"attn_{x}": name for x, name in names.items()} | {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "down")}
    for layer in range(6):
        for ours, theirs in names.items():
            expected = state[f"model.layers.{layer}.{theirs}.weight"].half().float().numpy()
            assert np.array_equal(found[f"blk.{layer}.{ours}.weight"], expected), ours


def test_auto_is_sherry_where_that_fits(tiny_checkpoint, sherry_gguf_file, tmp_path):
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(outtype="auto"))
    assert report.outfile.read_bytes() == sherry_gguf_file.read_bytes()


def test_other_options_win(tiny_checkpoint, tmp_path):
    types = TypeChoice("f16", "bf16", [("ffn_down", "q8_0"), ("attn_v", "q4_0")], outtype="q2_0")
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=types)
    kinds = {t.name: t.type_name for t in report.tensors}
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("F16", "BF16")
    found = types_of(report)
    assert (found.pop("ffn_down.weight"), found.pop("attn_v.weight")) == ("Q8_0", "Q4_0")
    assert set(found.values()) == {"Q2_0"}
    assert report.verdict.sherry.tensors == 30
    everything = TypeChoice("f32", None, [(".*", "f32")], outtype="tq2_0")  # which none is left for
    plain = convert(tiny_checkpoint, tmp_path / "plain.gguf", types=everything)
    assert {t.type_name for t in plain.tensors} == {"F32"}
    assert field(plain.outfile, "general.file_type") not in FILE_TYPES.values()


def test_q4_0_of_single_tensors_is_exact_too(tiny_checkpoint, sherry_gguf_file, tmp_path):
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(overrides=[("ffn_up", "q4_0")]))
    name = "blk.3.ffn_up.weight"
    values = [values_of(path)[name] for path in (report.outfile, sherry_gguf_file)]
    assert np.array_equal(*values)
    assert field(report.outfile, "sherry.format_version") == 1


@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Moe"])
def test_other_architectures(random_checkpoint, sherry_config, tmp_path, family):
    """Experts are stacked, and counted as the one tensor that they become."""
    directory = random_checkpoint(family, sherry=sherry_config)
    report = convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="q2_0"))
    assert set(types_of(report).values()) == {"Q2_0"}
    assert report.verdict.sherry.tensors == 14
    assert report.bits_per_weight("Q2_0") == 2.25


def test_what_fp16_cannot_hold_is_refused_as_ever(tiny_checkpoint, tmp_path):
    directory = tmp_path / "large"
    shutil.copytree(tiny_checkpoint, directory)
    state = load_file(directory / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][7] *= 1e8
    save_file(state, directory / "model.safetensors")
    with pytest.raises(
        SherryError, match=r"layers\.1\.mlp\.up_proj\.weight: 2 scales do not fit fp16 .* row 7, group 0"
    ):
        convert(directory, tmp_path / "x.gguf", types=TypeChoice(outtype="q2_0"))


def test_default_name(tiny_checkpoint, tmp_path):
    directory = tmp_path / "My-Model"
    shutil.copytree(tiny_checkpoint, directory)
    assert convert(directory, types=TypeChoice(outtype="q2_0")).outfile.name == "My-Model-5.8M-Q2_0.gguf"


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0", "q2_0", "q4_0"])
def test_damage_is_found(random_checkpoint, sherry_config, tmp_path, outtype):
    """A bit of a code, and one of a scale: found by comparing with the checkpoint, and located."""
    directory = random_checkpoint("Llama", sherry={**sherry_config, "granularity": "per_channel"})
    checkpoint = Checkpoint(directory)
    types = TypeChoice(outtype=outtype)
    job = Job(checkpoint, make_plan(checkpoint), types, as_trained=True)
    file = convert(directory, tmp_path / "x.gguf", types=types, verify=False).outfile
    assert verify([file], open_model(replace(job), file)).sherry.weights == 2 * 256 * (2 * (256 + 128) + 3 * 512)

    tensor = tensors_of(file)["blk.1.ffn_up.weight"]
    row = tensor.data_offset + 2 * tensor.data.shape[1]
    d, codes = (0, 2) if outtype in ("q2_0", "q4_0") else (named(outtype).block_bytes - 2, 0)
    for offset, bit in ((codes, 2), (codes + 7, 1), (d, 1)):
        content = bytearray(file.read_bytes())
        content[row + offset] ^= bit
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(SherryError, match=r"blk\.1\.ffn_up\.weight, row 2, group \d+ .* is not what was trained"):
            verify([tmp_path / "damaged.gguf"], open_model(replace(job), file))


def test_the_help_names_the_types(capsys):
    from sherry_gguf.cli import run_command

    with pytest.raises(SystemExit):
        run_command("convert", ["--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "stq1_0, sherry, tq1_0, sherry_g32, tq2_0, q2_0, sherry_2p, q4_0, or auto" in said
    assert "(default: sherry, else sherry_g32; tq1_0, " in said
