"""The relatives of Sherry, through the same path: detected, converted, and every weight of the file compared."""

from __future__ import annotations

import json
from types import SimpleNamespace

import families as f
import numpy as np
import pytest
import torch
import transformers
from reading import tensors_of, values_of
from refusals import refused
from safetensors.torch import load_file, save_file

from sherry_gguf.checkpoint import Checkpoint, Source
from sherry_gguf.cli import run_command
from sherry_gguf.convert import TypeChoice, convert
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.files.gguf_file import open_gguf
from sherry_gguf.files.requantize import requantize
from sherry_gguf.files.rewrite import new_entries, rewrite
from sherry_gguf.formats.i2_s import I2_S
from sherry_gguf.formats.tq2_0 import TQ2_0
from sherry_gguf.parity import reference
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.ternary import Rule

SMALL = {"num_hidden_layers": 1, "vocab_size": 4096}
LLAMA = {"q": 8, "k": 2}  # heads, whose rows upstream permutes
BITNET = {"hidden_act": "silu", "tie_word_embeddings": True, **SMALL}


@pytest.fixture(scope="module")
def llama(random_checkpoint, pinned_gguf):
    return random_checkpoint("Llama", num_attention_heads=8, **SMALL)


@pytest.fixture(scope="module")
def bitnet_model(random_checkpoint, pinned_gguf):
    """The first BitNet's architecture: a norm before o and down, silu, the embedding as output."""
    return f.as_the_first_bitnet(random_checkpoint("BitNet", **BITNET))


def latents(name, w):
    return {name: w}


def weights_of(model):
    return {name: w for name, w in load_file(model / "model.safetensors").items() if name.endswith("_proj.weight")}


def require_equal(conversion, forward, heads=LLAMA):
    """Each weight of the file is that of the forward, its scale rounded once to fp16.

    forward: name -> float32[rows, k], as the published code multiplies.
    """
    found = values_of(conversion.outfile)
    for name, w in forward.items():
        expected = f.in_upstreams_order(name, w.float(), heads).half().float().numpy()
        assert np.array_equal(found[f.gguf_name(name)], expected), name
    verdict = conversion.verdict
    assert verdict.sherry.weights == sum(w.numel() for w in forward.values())
    assert verdict.sherry.max_scale_error <= 2**-11


def types_of(conversion):
    return {t.tensor_type.name for t in tensors_of(conversion.outfile, "blk.").values() if len(t.shape) > 1}


@pytest.mark.parametrize("outtype", [None, "tq1_0"])
def test_trilm(llama, tmp_path, outtype):
    """Two shards: scales of rows in some matrices, of columns in others. They are fp16 already."""
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: f.trilm(name, w)})
    conversion = convert(model, tmp_path / "x.gguf", types=TypeChoice(outtype=outtype))
    assert conversion.source == "dense ternary layers: 7 dense ternary already"
    assert types_of(conversion) == {"TQ1_0" if outtype else "TQ2_0"}
    require_equal(conversion, weights_of(model))
    assert conversion.verdict.sherry.max_scale_error == 0
    with refused(r"its weights are dense ternary, without groups to put in another order; leave out --regrid"):
        convert(model, tmp_path / "y.gguf", types=TypeChoice(outtype="stq1_0"), regrid="exact")


def test_trilm_of_shards_that_are_no_whole_blocks(llama, tmp_path):
    """As in its 1.1B, where o has two scales in rows of 1,792: 896 is 3.5 blocks."""
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: f.trilm(name, w, 4)})
    with refused(r"blk\.0\.ffn_down.* do not fit TQ2_0.*; 2 of 7 tensors do not fit.*--outtype q2_0 holds all"):
        convert(model, tmp_path / "x.gguf")
    conversion = convert(model, tmp_path / "x.gguf", types=TypeChoice(outtype="auto"))
    assert types_of(conversion) == {"TQ1_0", "Q2_0"}
    require_equal(conversion, weights_of(model))


@pytest.mark.parametrize(("method", "sharing"), [("absmean", "per_channel"), ("twn", "per_group")])
def test_angelslim_latents(llama, tmp_path, method, sharing):
    keys = {"w_bits": 0, "quant_method": method, "granularity": sharing, "group_size": 256}
    model = f.rewrite(llama, tmp_path / "model", latents, **keys)
    conversion = convert(model, tmp_path / "x.gguf")
    shared = sharing if sharing == "per_channel" else "per_group 256"
    assert conversion.source == f"dense ternary layers: 7 latents of {method}, scales {shared}"
    rule = getattr(f, method)
    length = 256 if sharing == "per_group" else None
    require_equal(conversion, {name: rule(w, length or w.shape[1]) for name, w in weights_of(model).items()})


@pytest.mark.parametrize("method", ["absmean", "twn"])
def test_angelslim_baked(llama, tmp_path, method):
    """``main`` saves w + (q - w), computed in bf16: its rounding is taken back, and how much that was is told."""
    rule = getattr(f, method)

    def wide(w):
        return torch.where(w.abs() > 2 * w.abs().mean(), 2 * w, w)  # outliers, which rounding moves furthest

    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: wide(w) + (rule(wide(w), 256) - wide(w))})
    with refused("dense ternary but for rounding.*--method absmean --granularity per_group"):
        make_plan(Checkpoint(model))
    special = {"quant_config": {"special": {"quant_method": method, "granularity": "per-group", "group_size": 256}}}
    declared = {"compression_config": {"QAT": {"plugin_config": special}}}
    (model / "angelslim_config.json").write_text(json.dumps(declared))
    conversion = convert(model, tmp_path / "x.gguf")
    assert conversion.source == f"dense ternary layers: 7 {method}, scales per_group 256 but for rounding"
    assert "7 layers were saved as w + (q - w)" in conversion.notes[0]
    assert set(conversion.losses) == set(weights_of(model))
    assert 0 < max(conversion.losses.values()) < 0.03
    require_equal(conversion, {name: rule(wide(w), 256) for name, w in weights_of(llama).items()})
    with refused("its weights are no absmean ones that rounding moved, with scales per_channel"):
        convert(Source(model, method="absmean", granularity=Granularity("per_channel")), tmp_path / "y.gguf")


@pytest.mark.parametrize("version", ["ultraquantv2", "ultraquantv3"])
def test_tequila(llama, tmp_path, version):
    """Its dead weights become a bias, of q and k in the order that the rotation has in llama.cpp."""
    generator = torch.Generator().manual_seed(3)

    def with_gains(name, w):
        if version == "ultraquantv2":
            return {name: w}
        gains = (torch.randn(w.shape, generator=generator) * 0.01).to(w.dtype)
        return {name: w, name.replace(".weight", ".Lambada"): gains}

    keys = {"w_bits": 0, "quant_method": version, "granularity": "per_group", "group_size": 256, "eps": 1e-3}
    model = f.rewrite(llama, tmp_path / "model", with_gains, **keys)
    conversion = convert(model, tmp_path / "x.gguf")
    require_equal(conversion, {name: f.absmean(w, 256) for name, w in weights_of(model).items()})
    state, found = load_file(model / "model.safetensors"), tensors_of(conversion.outfile)
    for name, w in weights_of(model).items():
        gain = state.get(name.replace(".weight", ".Lambada"), torch.tensor(1e-3, dtype=w.dtype))
        bias = f.in_upstreams_order(name, f.dead_bias(w, 256, gain), LLAMA)
        assert np.array_equal(found[f.gguf_name(name).replace("weight", "bias")].data, bias.numpy()), name
    assert not any("ignored" in note for note in conversion.notes)


def test_tequila_where_it_cannot_be_merged(random_checkpoint, llama, pinned_gguf, tmp_path):
    keys = {"w_bits": 0, "granularity": "per_group", "group_size": 256, "eps": 1e-3}
    model = f.rewrite(llama, tmp_path / "first", latents, quant_method="ultraquant", **keys)
    with pytest.raises(
        SherryError, match=r"'ultraquant'.*act on the signs of inputs, for which llama.cpp has no place"
    ):
        make_plan(Checkpoint(model))
    model = f.rewrite(llama, tmp_path / "third", latents, quant_method="ultraquantv3", **keys)
    with pytest.raises(SherryError, match=r"down_proj\.weight: has no gains of dead weights beside it"):
        make_plan(Checkpoint(model))
    model = f.rewrite(llama, tmp_path / "no-gain", latents, quant_method="ultraquantv2", **{**keys, "eps": None})
    with pytest.raises(SherryError, match=r"config\.json: eps is None"):
        make_plan(Checkpoint(model))
    with_gains = f.FAMILIES_BY_NAME["Tequila, third version"].change
    model = f.rewrite(llama, tmp_path / "second", with_gains, quant_method="ultraquantv2", **keys)
    with pytest.raises(SherryError, match=r"down_proj\.Lambada belongs to Tequila's third version \(ultraquantv3\)"):
        make_plan(Checkpoint(model))
    qwen = f.rewrite(random_checkpoint("Qwen2", **SMALL), tmp_path / "q", latents, quant_method="tequila", **keys)
    with pytest.raises(
        SherryError, match=r"adds a bias to each linear layer.*LlamaForCausalLM, not in Qwen2ForCausalLM"
    ):
        make_plan(Checkpoint(qwen))
    baked = f.rewrite(llama, tmp_path / "b", lambda n, w: {n: f.absmean(w, 256)}, quant_method="tequila", **keys)
    with pytest.raises(SherryError, match="are no latents: Tequila's dead weights, which make a bias, are gone"):
        make_plan(Checkpoint(baked))


@pytest.mark.parametrize("already", [False, True])
def test_bitnet(bitnet_model, tmp_path, already):
    """Latents, and weights that have their scale: upstream's converter would scale both by their mean once more."""
    change = (lambda name, w: {name: f.bitnet(w)}) if already else latents
    model = f.rewrite(bitnet_model, tmp_path / "model", change)
    conversion = convert(model, tmp_path / "x.gguf")
    assert conversion.source == f"dense ternary layers: 7 {'dense ternary already' if already else 'latents of bitnet'}"
    require_equal(conversion, {name: f.bitnet(w) for name, w in weights_of(bitnet_model).items()}, heads={})


def test_bitnet_latents_of_transformers(llama, tmp_path):
    """As a Llama that transformers quantizes in its forward (Falcon-E's own latents); in float32."""
    keys = {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: w.float()}, **keys)
    conversion = convert(model, tmp_path / "x.gguf")
    require_equal(conversion, {name: f.bitnet(w) for name, w in weights_of(model).items()})


@pytest.mark.parametrize("linear_class", [None, "autobitlinear"])
def test_packed(llama, tmp_path, linear_class):
    """Falcon3-1.58bit and Falcon-E: BitLinear divides by the scale that is stored; AutoBitLinear multiplies."""
    forward = {}

    def packed(name, w):
        ternary = f.bitnet(w.float()).sign()
        scale = 1 / w.float().abs().mean() if linear_class is None else w.float().abs().mean()
        scale = scale.reshape(1).bfloat16()
        forward[name] = ternary / scale.float() if linear_class is None else ternary * scale.float()
        return {name: f.pack(ternary), f"{name}_scale": scale}

    quantization = {"quant_method": "bitnet", **({"linear_class": linear_class} if linear_class else {})}
    model = f.rewrite(llama, tmp_path / "model", packed, quantization_config=quantization)
    conversion = convert(model, tmp_path / "x.gguf")
    assert conversion.source == "dense ternary layers: 7 dense ternary already"
    assert conversion.notes == []
    require_equal(conversion, forward)


def test_a_file_of_bitnet_cpp_becomes_what_its_checkpoint_does(llama, tmp_path):
    """To the byte, as scales in fp16 are: written as bitnet.cpp writes them, and requantized."""
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: f.bitnet(w.float()).half()})
    converted = convert(model, tmp_path / "x.gguf").outfile
    file = open_gguf(converted)
    members = {tensor.name for tensor in file.tensors if tensor.type_name == "TQ2_0"}
    as_bitnet_writes = SimpleNamespace(type_id=36, size=I2_S.size, pack=lambda w: f.i2_s(w, "arm"))
    rewrite(file, members, as_bitnet_writes, new_entries(file.header, 40, None), tmp_path / "i2_s.gguf")
    assert {t.type_name for t in open_gguf(tmp_path / "i2_s.gguf").tensors if t.name in members} == {"I2_S"}
    requantize(tmp_path / "i2_s.gguf", TQ2_0, tmp_path / "y.gguf", i2s_layout="arm")
    assert (tmp_path / "y.gguf").read_bytes() == converted.read_bytes()


def test_packed_and_damaged(llama, tmp_path):
    def with_scale(scale):
        def packed(name, w):
            return {
                name: f.pack(f.bitnet(w.float()).sign()),
                **({f"{name}_scale": scale.clone()} if scale is not None else {}),
            }

        return packed

    keys = {"quantization_config": {"quant_method": "bitnet"}}
    scale = torch.tensor([2.0], dtype=torch.bfloat16)
    for i, (wrong, words) in enumerate(
        [(None, "is packed, and no .*weight_scale of one number"), (scale * 0, "is 0, no scale"), (scale / 0, "is inf")]
    ):
        model = f.rewrite(llama, tmp_path / f"{i}", with_scale(wrong), **keys)
        with pytest.raises(SherryError, match=words):
            Checkpoint(model)
    model = f.rewrite(llama, tmp_path / "code", with_scale(scale), **keys)
    state = load_file(model / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][100, 7] |= 0xC0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(SherryError, match=r"up_proj\.weight: the code of weight 7 of row 484 is 3, no ternary value"):
        convert(model, tmp_path / "x.gguf")


def test_graphs_that_llama_cpp_has_otherwise(random_checkpoint, llama, tmp_path):
    """Refused by name, and before a weight is read."""
    relu = random_checkpoint("BitNet", **{**BITNET, "hidden_act": "relu2"})
    path = relu / "config.json"
    config = json.loads(path.read_text())
    for settings in (config, {key: value for key, value in config.items() if key != "hidden_act"}):
        path.write_text(json.dumps(settings))
        with pytest.raises(SherryError, match=r"is BitNetForCausalLM with the activation relu2, as Microsoft's BitNet"):
            make_plan(Checkpoint(relu))
    model = f.rewrite(llama, tmp_path / "norms", latents, quantization_config={"use_rms_norm": True})
    with pytest.raises(SherryError, match="a norm before each linear layer"):
        make_plan(Checkpoint(model))


def test_scales_of_128_take_another_type(llama, tmp_path):
    """AngelSlim's own group size, which is less than a block of TQ2_0 has."""
    keys = {"w_bits": 0, "quant_method": "absmean", "granularity": "per_group", "group_size": 128}
    model = f.rewrite(llama, tmp_path / "model", latents, **keys)
    with refused(r"weights do not fit TQ2_0 and would change: its blocks have 256.*--outtype q2_0 holds all"):
        convert(model, tmp_path / "x.gguf")
    conversion = convert(model, tmp_path / "x.gguf", types=TypeChoice(outtype="q2_0"))
    require_equal(conversion, {name: f.absmean(w, 128) for name, w in weights_of(model).items()})


def test_what_is_said_of_weights_counts_for_latents_alone(llama, tmp_path):
    """TriLM's weights under the name of a method are not quantized once more; floats are no ternary weights."""
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: f.trilm(name, w)}, quant_method="absmean")
    assert make_plan(Checkpoint(model)).summary() == "dense ternary layers: 7 dense ternary already"
    with refused(r"all 7 layers hold floating-point.*--method bitnet"):
        make_plan(Checkpoint(llama))
    with pytest.raises(SherryError, match=r"7 of 7 layers.* are floating-point"):
        make_plan(Checkpoint(llama), Source(llama, method="ternary"))
    for lossy in (False, True):  # a lossy conversion is of plain models
        plan = make_plan(Checkpoint(llama), Source(llama, method="bitnet", allow_lossy=lossy))
        assert plan.summary() == "dense ternary layers: 7 latents of bitnet"


TOKENS = np.arange(3, 19, dtype=np.int32)


def test_the_first_bitnet_in_pytorch(bitnet_model):
    """transformers has the model under other names, and config.json calls it a Llama."""
    checkpoint = Checkpoint(bitnet_model)
    logits = reference.load(checkpoint, make_plan(checkpoint))(TOKENS)
    model = transformers.BitNetForCausalLM(transformers.BitNetConfig(**{**checkpoint.config, "model_type": "bitnet"}))
    state = load_file(bitnet_model / "model.safetensors")
    state = {name: f.bitnet(w).float() if name.endswith("_proj.weight") else w.float() for name, w in state.items()}
    names = {"inner_attn_ln": "attn_sub_norm", "ffn_layernorm": "ffn_sub_norm"}
    for theirs, ours in names.items():
        state = {name.replace(theirs, ours): w for name, w in state.items()}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0]
    assert np.allclose(logits, expected, atol=1e-4)


def test_tequila_in_pytorch(llama, tmp_path):
    """Its bias where the published forward has a second product, with ones."""
    keys = {"w_bits": 0, "quant_method": "ultraquantv2", "granularity": "per_channel", "eps": 0.5}
    model = f.rewrite(llama, tmp_path / "model", latents, **keys)
    checkpoint = Checkpoint(model)
    logits = reference.load(checkpoint, make_plan(checkpoint))(TOKENS)
    published = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for name, w in weights_of(model).items():
        linear = published.get_submodule(name.removesuffix(".weight"))
        bias = f.dead_bias(w, w.shape[1], torch.tensor(0.5, dtype=w.dtype))
        linear.weight.data = f.absmean(w, w.shape[1]).float()
        linear.register_forward_hook(lambda _, inputs, output, bias=bias: output + bias)
    with torch.no_grad():
        expected = published.eval()(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0]
    assert np.allclose(logits, expected, atol=1e-3)
    assert np.abs(logits).max() > 0.1


@pytest.mark.parametrize("stages", [1, 2])
def test_fairy2i_is_folded_to_a_real_layer(stages):
    """Which gives what the complex forward gives, real parts first."""
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(64, 96, generator=generator, dtype=torch.float64) * 0.05
    x = torch.randn(96, generator=generator, dtype=torch.float64)
    u, v = f.complex_layer(w, stages)
    z = torch.complex(*x.chunk(2))
    y = u @ z + v @ z.conj()
    folded = Rule(f"complex_phase_v{stages}").values(w)
    assert torch.allclose(folded.double() @ x, torch.cat([y.real, y.imag]), rtol=0, atol=1e-6)


def test_fairy2i(llama, tmp_path):
    """It goes into a stock type, and how near that is to the layer is told."""
    source = Source(llama, method="complex_phase_v2")
    conversion = convert(source, tmp_path / "x.gguf")
    assert conversion.source == "complex layers, folded: 7 latents of complex_phase_v2"
    assert types_of(conversion) == {"Q8_0"}
    found = values_of(conversion.outfile)
    for name, w in weights_of(llama).items():
        expected = f.in_upstreams_order(name, Rule("complex_phase_v2").values(w), LLAMA).numpy()
        error = np.linalg.norm(found[f.gguf_name(name)] - expected) / np.linalg.norm(expected)
        assert error == pytest.approx(conversion.losses[f.gguf_name(name)], rel=1e-4)
        assert 1e-3 < error < 1e-2
    with refused("weights do not fit TQ2_0"):
        convert(source, tmp_path / "y.gguf", types=TypeChoice(outtype="tq2_0"))
    with refused(r"has no halves, and complex layers have.*--sherry-layers"):
        Rule("complex_phase_v1").values(torch.ones(3, 4))


def test_inspect_tells_the_family(llama, tmp_path, capsys):
    model = f.rewrite(llama, tmp_path / "model", lambda name, w: {name: f.trilm(name, w)})
    assert run_command("inspect", [str(model)]) == 0
    said = capsys.readouterr().out
    assert f"{model}: LlamaForCausalLM, 7 layers" in said
    assert "dense ternary, with no fixed number of zeros in 4 weights; 3" in said
    assert "a scale per_group 256 or per_tensor in the first rows" in said
    assert "convert reads dense ternary layers: 7 dense ternary already" in said
    assert run_command("inspect", [str(llama), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["architecture"], found["read_as"], found["families"][0]["layers"]) == ("LlamaForCausalLM", None, 7)
    assert "--method bitnet" in found["refusal"]
