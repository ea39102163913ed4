"""Checkpoint to file: every tensor against the checkpoint, by a way of its own, and files that must not be harmed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from reading import field, tensors_of
from refusals import refused
from remaking import remake
from safetensors.torch import load_file, save_file
from trainer import stored_forward

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.weights.granularity import Granularity

pytestmark = pytest.mark.usefixtures("pinned_gguf")


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows of q and k in a Llama GGUF: the two halves of a head's rotation interleaved."""
    rows, k = w.shape
    return w.reshape(heads, 2, rows // heads // 2, k).swapaxes(1, 2).reshape(rows, k)


def test_the_shipped_checkpoint(tiny_checkpoint, sherry_gguf_file):
    state = load_file(tiny_checkpoint / "model.safetensors")
    found = tensors_of(sherry_gguf_file)
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj"} | {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    heads = {"attn_q": 4, "attn_k": 2}
    for layer in range(6):
        for ours, theirs in names.items():
            w = state[f"model.layers.{layer}.{theirs}.weight"]
            expected = stored_forward(w, 128)
            if ours in heads:
                expected = permuted(expected, heads[ours])
            tensor = found.pop(f"blk.{layer}.{ours}.weight")
            assert tensor.tensor_type.name == "SHERRY"
            assert tensor.n_bytes * 8 == 1.375 * w.numel()
            assert np.array_equal(sherry.SHERRY.dequantize(tensor.data), expected)
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds.pop("token_embd.weight") == "Q8_0"
    assert set(kinds.values()) == {"F32"}
    assert len(kinds) == 13


def test_keys_of_the_file(sherry_gguf_file):
    assert field(sherry_gguf_file, "sherry.format_version") == 1
    assert field(sherry_gguf_file, "general.file_type") == 512
    assert field(sherry_gguf_file, "general.architecture") == "llama"
    assert field(sherry_gguf_file, "tokenizer.ggml.model") == "llama"


@pytest.mark.parametrize(("granularity", "group_size"), [("per_group", 256), ("per_channel", 128), ("per_tensor", 128)])
def test_granularities_of_config(random_checkpoint, sherry_config, tmp_path, granularity, group_size):
    directory = random_checkpoint(
        "Llama", sherry={**sherry_config, "granularity": granularity, "group_size": group_size}
    )
    report = convert(directory, tmp_path / "x.gguf")
    w = load_file(directory / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    length = {"per_group": 256, "per_channel": w.shape[1], "per_tensor": w.numel()}[granularity]
    found = tensors_of(report.outfile)["blk.1.ffn_down.weight"]
    assert np.array_equal(sherry.SHERRY.dequantize(found.data), stored_forward(w, length))
    assert report.verdict is not None
    assert report.verdict.sherry.tensors == 14


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Qwen3Moe", "Mixtral"])
def test_architectures(random_checkpoint, sherry_config, tmp_path, family):
    report = convert(random_checkpoint(family, sherry=sherry_config, shard="400KB"), tmp_path / "x.gguf")
    assert report.verdict is not None
    assert report.bits_per_weight("SHERRY") == 1.375
    sherry = {t.name.split(".", 2)[2] for t in report.tensors if t.type_name == "SHERRY"}
    ffn = {"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
    if family in ("Qwen3Moe", "Mixtral"):
        ffn = {name.replace(".weight", "_exps.weight") for name in ffn}
    assert sherry == ffn | {f"attn_{x}.weight" for x in ("q", "k", "v", "output")}
    others = {t.tensor_class: t.type_name for t in report.tensors if t.type_name != "SHERRY"}
    assert others["token embedding"] == others.get("output", "Q8_0") == "Q8_0"
    assert others["norms"] == others.get("router", "F32") == "F32"


def test_experts(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Qwen3Moe", sherry={**sherry_config, "granularity": "per_tensor"})
    found = tensors_of(convert(directory, tmp_path / "x.gguf").outfile)["blk.1.ffn_up_exps.weight"]
    checkpoint = Checkpoint(directory)
    for expert in range(4):
        w = checkpoint.load(f"model.layers.1.mlp.experts.{expert}.up_proj.weight")
        assert np.array_equal(sherry.SHERRY.dequantize(found.data[expert]), stored_forward(w, w.numel()))


def test_experts_fused_into_one_tensor(random_checkpoint, sherry_config, tmp_path):
    """Per tensor: of gate and up together, as the fused tensor was trained."""
    directory = random_checkpoint("Qwen3Moe", sherry=sherry_config)
    separate = tensors_of(convert(directory, tmp_path / "separate.gguf").outfile)
    state = load_file(directory / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        experts = [[state.pop(f"{prefix}.{e}.{p}_proj.weight") for p in ("gate", "up", "down")] for e in range(4)]
        state[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        state[f"{prefix}.down_proj"] = torch.stack([down for _, _, down in experts])
    save_file(state, directory / "model.safetensors")
    fused = tensors_of(convert(directory, tmp_path / "fused.gguf").outfile)
    assert set(fused) == set(separate)
    for name, tensor in separate.items():
        assert np.array_equal(tensor.data, fused[name].data), name


def bake(source, directory, dtype):
    """What AngelSlim's main saves: fake-quantized weights, and config.json silent about them. Returns its tensors."""
    remake(source, directory, lambda _, w: torch.from_numpy(stored_forward(w, 128)).to(dtype))
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_baked_weights(tiny_checkpoint, tmp_path, dtype):
    directory = tmp_path / "baked"
    state = bake(tiny_checkpoint, directory, dtype)
    report = convert(directory, tmp_path / "x.gguf")
    assert report.source == "42 baked Sherry layers"
    found = tensors_of(report.outfile)["blk.3.ffn_down.weight"]
    expected = state["model.layers.3.mlp.down_proj.weight"].float().numpy()
    assert np.array_equal(sherry.SHERRY.dequantize(found.data), expected)


def test_a_baked_state_dict(tiny_checkpoint, tmp_path):
    state = bake(tiny_checkpoint, tmp_path / "baked", torch.bfloat16)
    buffers = {
        f"{name.removesuffix('weight')}weight_quantizer.scale": torch.ones(1)
        for name in state
        if name.endswith("_proj.weight")
    }
    torch.save({**state, **buffers}, tmp_path / "tiny_fake_quant_model.pt")
    directory = convert(tmp_path / "baked", tmp_path / "directory.gguf")
    bare = convert(Source(tmp_path / "tiny_fake_quant_model.pt", tiny_checkpoint), tmp_path / "bare.gguf")
    assert bare.source == "42 baked Sherry layers"
    assert "ignored 42 quantizer buffers" in bare.notes[0]
    for name, tensor in tensors_of(directory.outfile).items():
        assert np.array_equal(tensor.data, tensors_of(bare.outfile)[name].data)


def test_a_baked_layer_that_was_changed_later(tiny_checkpoint, tmp_path):
    directory = tmp_path / "baked"
    state = bake(tiny_checkpoint, directory, torch.float32)
    state["model.layers.2.mlp.up_proj.weight"][700, 133] *= 1.5
    save_file(state, directory / "model.safetensors")
    with pytest.raises(SherryError, match=r"layers\.2\.mlp\.up_proj\.weight: .* row 700, group 3[23] "):
        convert(directory, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_types(tiny_checkpoint, tmp_path):
    types = TypeChoice("f16", "bf16", [("ffn_down", "f32"), (r"blk\.0\.attn_q", "q4_0")])
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", types=types)
    kinds = {t.name: t.type_name for t in report.tensors}
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["output.weight"] == "BF16"  # the tied embedding, a second time
    assert any("written twice" in note for note in report.notes)
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.1.attn_q.weight"] == "SHERRY"
    # a type changes how values are stored, not which: these are the values of the SHERRY blocks
    plain = tensors_of(convert(tiny_checkpoint, tmp_path / "y.gguf").outfile)["blk.2.ffn_down.weight"]
    found = tensors_of(report.outfile)["blk.2.ffn_down.weight"]
    assert np.array_equal(found.data, sherry.SHERRY.dequantize(plain.data))


def test_a_file_without_sherry_tensors_does_not_claim_to_be_one(tiny_checkpoint, tmp_path):
    types = TypeChoice("f32", None, [(".*", "f32")])
    path = convert(tiny_checkpoint, tmp_path / "x.gguf", types=types).outfile
    assert field(path, "sherry.format_version") is None
    assert field(path, "general.file_type") != 512


def test_a_tied_copy_of_the_embedding_is_not_written(tiny_checkpoint, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, directory)
    state = load_file(directory / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, directory / "model.safetensors")
    assert "output.weight" not in {t.name for t in convert(directory, tmp_path / "x.gguf").tensors}


def test_a_type_that_rows_do_not_fit_is_refused(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry=sherry_config, hidden_size=384, num_attention_heads=6)
    convert(directory, tmp_path / "fits.gguf")
    narrow = random_checkpoint("Llama", sherry=sherry_config, hidden_size=144, num_attention_heads=4, head_dim=36)
    with pytest.raises(SherryError, match=r"group_size 128 does not divide rows of 144"):
        convert(narrow, tmp_path / "x.gguf", types=TypeChoice("f16"))
    down = r"mlp\.down_proj"
    with pytest.raises(SherryError, match=r"output\.weight: rows of 144 weights are no multiple of 32"):
        convert(Source(narrow, sherry_layers=down), tmp_path / "x.gguf")
    report = convert(Source(narrow, sherry_layers=down), tmp_path / "x.gguf", types=TypeChoice("f16", "f16"))
    assert {t.type_name for t in report.tensors if t.tensor_class == "attention"} == {"BF16"}


def test_a_scale_per_16_does_not_fit(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Llama", sherry={**sherry_config, "group_size": 16})
    with refused(r"[\d,]+ of 131,072 weights do not fit SHERRY .* --tensor-type '.*=f16' stores the others"):
        convert(directory, tmp_path / "x.gguf")
    report = convert(directory, tmp_path / "x.gguf", types=TypeChoice(overrides=[("blk", "f16")]))
    w = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    found = tensors_of(report.outfile)["blk.0.ffn_up.weight"]
    assert np.array_equal(found.data.astype(np.float32), stored_forward(w, 16))


def test_allow_lossy_says_what_it_costs(random_checkpoint, tmp_path):
    directory = random_checkpoint("Llama")
    with refused("--allow-lossy"):
        convert(directory, tmp_path / "x.gguf")
    report = convert(Source(directory, allow_lossy=True), tmp_path / "x.gguf")
    assert len(report.losses) == 14
    w = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    expected = stored_forward(w, 128)
    error = np.linalg.norm(expected - w.double().numpy()) / np.linalg.norm(w.double().numpy())
    assert report.losses["model.layers.0.mlp.up_proj.weight"] == pytest.approx(error, rel=1e-12)
    declared = convert(Source(directory, granularity=Granularity()), tmp_path / "y.gguf")
    assert declared.losses == {}
    for name, tensor in tensors_of(declared.outfile).items():
        assert np.array_equal(tensor.data, tensors_of(report.outfile)[name].data)


def test_an_existing_file_is_never_harmed(tiny_checkpoint, tmp_path, monkeypatch):
    outfile = tmp_path / "x.gguf"
    outfile.write_bytes(b"precious")
    with refused(r"exists; .*--force"):
        convert(tiny_checkpoint, outfile)

    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    state = load_file(damaged / "model.safetensors")
    state["model.layers.5.mlp.up_proj.weight"][767, 255] = torch.nan
    save_file(state, damaged / "model.safetensors")
    with pytest.raises(SherryError, match=r"layers\.5\.mlp\.up_proj\.weight: 1 weights are not finite.* row 767"):
        convert(damaged, outfile, force=True)
    assert outfile.read_bytes() == b"precious"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sherry_gguf.convert.pipeline.verify_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny_checkpoint, outfile, force=True)
    assert outfile.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.gguf"]

    convert(tiny_checkpoint, outfile, force=True)
    assert outfile.read_bytes()[:4] == b"GGUF"


def test_verification_catches_a_wrong_byte(tiny_checkpoint, sherry_gguf_file, tmp_path):
    """Each kind of damage to the finished file is found by the comparison that the converter makes."""
    from sherry_gguf.convert.model import Job, open_model
    from sherry_gguf.convert.plan import make_plan
    from sherry_gguf.convert.verify import verify

    checkpoint = Checkpoint(tiny_checkpoint)
    job = Job(checkpoint, make_plan(checkpoint), TypeChoice(), as_trained=True)

    def check(path):
        return verify([path], open_model(replace(job), path))

    assert check(sherry_gguf_file).sherry.weights == 4_718_592
    block = tensors_of(sherry_gguf_file)["blk.2.ffn_up.weight"].data_offset + 22 * 5  # row 2, block 1
    damages = {
        block + 3: (0x01, r"blk\.2\.ffn_up\.weight, row 2, group 35 "),
        block + 16: (0x80, r"blk\.2\.ffn_up\.weight, row 2, group 39 "),
        block + 20: (0x01, r"blk\.2\.ffn_up\.weight, row 2, group 32 "),
        tensors_of(sherry_gguf_file)["token_embd.weight"].data_offset + 9: (0x01, r"token_embd\.weight: .*Q8_0"),
        tensors_of(sherry_gguf_file)["output_norm.weight"].data_offset: (0x01, r"output_norm\.weight: .*F32"),
    }
    for offset, (bit, message) in damages.items():
        content = bytearray(sherry_gguf_file.read_bytes())
        content[offset] ^= bit
        (tmp_path / "damaged.gguf").write_bytes(content)
        with pytest.raises(SherryError, match=message):
            check(tmp_path / "damaged.gguf")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_that_is_not_finite_is_written(tiny_checkpoint, tmp_path, name, value):
    directory = tmp_path / "m"
    shutil.copytree(tiny_checkpoint, directory)
    state = load_file(directory / "model.safetensors")
    state[name].view(-1)[5] = value
    save_file(state, directory / "model.safetensors")
    with pytest.raises(SherryError, match=rf"{name}: 1 weights are not finite"):
        convert(directory, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model.layers.5.", "layer 5 of 6 lacks any tensor"),
        ("layers.2.mlp.up_proj", "layer 2 of 6 lacks ffn_up.weight"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tiny_checkpoint, tmp_path, lost, message):
    state = load_file(tiny_checkpoint / "model.safetensors")
    torch.save({name: tensor for name, tensor in state.items() if lost not in name}, tmp_path / "part.pt")
    with pytest.raises(SherryError, match=f"not complete: {message}"):
        convert(Source(tmp_path / "part.pt", tiny_checkpoint), tmp_path / "x.gguf")


def test_routers_stay_f32_whatever_is_asked_for(random_checkpoint, sherry_config, tmp_path):
    directory = random_checkpoint("Qwen3Moe", sherry=sherry_config)
    report = convert(directory, tmp_path / "x.gguf", types=TypeChoice(overrides=[("blk", "f16")]))
    kinds = {t.tensor_class: t.type_name for t in report.tensors}
    assert kinds["router"] == kinds["norms"] == "F32"
    assert kinds["experts"] == kinds["attention"] == "F16"
    assert str(report.verdict).endswith("none is SHERRY")


def test_a_typo_in_an_option_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(SherryError, match="'ffn_dwn' matches no tensor"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", types=TypeChoice(overrides=[("ffn_dwn", "f16")]))
    with pytest.raises(SherryError, match=r"absent\.json: no such file"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", metadata=tmp_path / "absent.json")


def test_dry_run_writes_nothing(tiny_checkpoint, tmp_path):
    report = convert(tiny_checkpoint, tmp_path / "x.gguf", dry_run=True)
    assert len(report.tensors) == 56
    assert not list(tmp_path.iterdir())


def test_default_name(tiny_checkpoint, tmp_path):
    directory = tmp_path / "My-Model"
    shutil.copytree(tiny_checkpoint, directory)
    assert convert(directory).outfile == directory / "My-Model-5.8M-SHERRY.gguf"


def test_what_upstream_cannot_read_is_one_line(tiny_checkpoint, tmp_path):
    directory = tmp_path / "m"
    shutil.copytree(tiny_checkpoint, directory)
    (directory / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(SherryError, match=r"llama\.cpp's converter stopped with") as caught:
        convert(directory, tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    with pytest.raises(SherryError, match="does not know UnheardOfForCausalLM"):
        convert(directory, tmp_path / "x.gguf")


def test_a_directory_that_cannot_be_written(tiny_checkpoint, tmp_path):
    with pytest.raises(SherryError, match="is no directory"):
        convert(tiny_checkpoint, tmp_path / "absent" / "x.gguf")
