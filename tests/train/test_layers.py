"""Layers: values and gradients by finite differences, and what becomes of a model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sherry_gguf.errors import SherryError
from sherry_gguf.train import convert_to_sherry
from sherry_gguf.train.arenas import set_residual
from sherry_gguf.train.layers import (
    METHODS,
    SherryLinear,
    TequilaLinear,
    quantize_model,
    quantized_layers,
    swap_linears,
)
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

ROWS, LENGTH = 6, 32


def make(method="sherry", granularity=None, bias=True):
    torch.manual_seed(3)
    linear = nn.Linear(LENGTH, ROWS, bias=bias, dtype=torch.float64)
    return METHODS[method].of(linear, granularity or Granularity("per_group", 16)), linear


def inputs():
    return torch.randn(5, LENGTH, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("residual", [0.0, 0.7])
def test_input_and_bias_have_the_gradient_of_finite_differences(method, residual):
    layer, _ = make(method)
    layer.residual = residual
    parameters = layer.bias.detach().requires_grad_()

    def forward(x, bias):
        return torch.func.functional_call(layer, {"bias": bias}, (x,))

    assert torch.autograd.gradcheck(forward, (inputs(), parameters))


@pytest.mark.parametrize("residual", [0.0, 0.7])
def test_latents_have_the_straight_through_gradient(residual):
    """The gradient of X (constant + (1 + lambda) W), which finite differences confirm."""
    layer, _ = make()
    layer.residual = residual
    x = inputs().detach()
    constant = layer.quantized_weight() - layer.weight.detach()

    def surrogate(latents):
        return x @ (constant + (1 + residual) * latents).T + layer.bias

    assert torch.autograd.gradcheck(surrogate, (layer.weight.detach().requires_grad_(),))
    weights = torch.randn(5, ROWS, dtype=torch.float64)  # any gradient of the output
    (expected,) = torch.autograd.grad(surrogate(layer.weight), layer.weight, weights)
    (found,) = torch.autograd.grad(layer(x), layer.weight, weights)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_a_forward_is_quantized_and_in_training_has_the_residual():
    layer, linear = make()
    layer.residual = 0.25
    x = inputs()
    plain = nn.functional.linear(x, layer.quantized_weight(), layer.bias)
    assert torch.allclose(layer(x), plain + 0.25 * x @ linear.weight.T)
    assert torch.equal(layer.eval()(x), plain)


def test_dead_weights_of_tequila_are_a_bias_with_a_gradient():
    layer, _ = make("tequila")
    dead = layer.quantized_weight() == 0
    assert 0 < dead.sum() < dead.numel()
    x, weights = inputs(), torch.randn(5, ROWS, dtype=torch.float64)
    bias = 1e-3 * (layer.weight * dead).sum(1)
    assert torch.allclose(layer(x), x @ layer.quantized_weight().T + layer.bias + bias)
    (found,) = torch.autograd.grad(layer(x), layer.weight, weights)
    straight_through = weights.T @ x
    assert torch.allclose(found, straight_through + 1e-3 * dead * weights.sum(0)[:, None])
    assert TequilaLinear.dead_gain == 1e-3


def test_a_model_is_converted_in_place(model_of):
    model = model_of()
    before = dict(model.named_parameters())
    names = convert_to_sherry(model, Granularity("per_channel"))
    assert len(names) == 14  # seven in each of two layers
    assert set(names) == set(quantized_layers(model))
    assert all(isinstance(model.get_submodule(name), SherryLinear) for name in names)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert type(model.lm_head) is nn.Linear
    assert "per_channel" in repr(model)
    with pytest.raises(SherryError, match="quantized already"):
        convert_to_sherry(model)


def test_config_json_has_the_keys_of_the_published_trainer(model_of, tiny_checkpoint, tmp_path):
    model = model_of()
    convert_to_sherry(model)
    model.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((tiny_checkpoint / "config.json").read_text())
    keys = ("w_bits", "quant_method", "granularity", "group_size", "N", "M", "enable_zero_point", "eps")
    assert {key: found[key] for key in keys} == {key: published[key] for key in keys}
    assert "sherry_layers" not in found


def test_only_some_layers_are_declared(model_of):
    model = model_of()
    assert len(convert_to_sherry(model, layers="down_proj")) == 2
    assert model.config.sherry_layers == "down_proj"


def test_the_residual_reaches_all_layers(model_of):
    model = model_of()
    convert_to_sherry(model)
    set_residual(model, 0.5)
    assert {layer.residual for layer in quantized_layers(model).values()} == {0.5}


def test_layers_that_cannot_be_are_refused(model_of):
    with pytest.raises(SherryError, match="no linear layer's name matches nothing"):
        convert_to_sherry(model_of(), layers="nothing")
    with pytest.raises(SherryError, match=r"q_proj: group_size 96 does not divide rows of 128"):
        convert_to_sherry(model_of(), Granularity("per_group", 96))


@pytest.fixture
def moe():
    """make(): a Qwen3-MoE of one layer, whose experts transformers holds in two parameters."""
    import transformers

    def make():
        sizes = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "vocab_size": 64}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 1}
        config = transformers.Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2)
        torch.manual_seed(1)
        return transformers.Qwen3MoeForCausalLM(config)

    return make


STACKS = ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"]


def test_experts_in_one_tensor(moe):
    """The forward is that of a model whose experts are the quantized weights; gradients pass straight through."""
    model, baked = moe(), moe()
    names = dict(model.named_parameters())
    assert sorted(convert_to_sherry(model, Granularity("per_group", 32), layers=r"\.experts\.")) == sorted(STACKS)
    assert dict(model.named_parameters()).keys() == names.keys()
    with torch.no_grad():
        for name in STACKS:
            weight = baked.get_parameter(name)
            expected = torch.from_numpy(
                quantize(weight.reshape(-1, 128).numpy(), Granularity("per_group", 32)).weights()
            )
            weight.copy_(expected.view_as(weight))
    tokens = torch.arange(64)[None]
    found, expected = (m(input_ids=tokens, labels=tokens) for m in (model, baked))
    assert torch.allclose(found.logits, expected.logits, atol=1e-6)
    for m in (model, baked):
        m.train()
        m(input_ids=tokens, labels=tokens).loss.backward()
    for name in STACKS:
        assert torch.allclose(model.get_parameter(name).grad, baked.get_parameter(name).grad, atol=1e-6)
    set_residual(model, 0.5)
    assert not torch.allclose(model(input_ids=tokens).logits, found.logits, atol=1e-3)
    assert torch.equal(model.eval()(input_ids=tokens).logits, found.logits)


def test_experts_that_cannot_be_are_refused(moe):
    with pytest.raises(SherryError, match="per_tensor scales cannot be told apart"):
        convert_to_sherry(moe(), Granularity("per_tensor"))
    with pytest.raises(SherryError, match="no place for Tequila's biases"):
        quantize_model(moe(), "tequila", Granularity())
    model = moe()
    convert_to_sherry(model, layers=r"\.experts\.")
    with pytest.raises(SherryError, match="experts is quantized already"):
        convert_to_sherry(model, layers=r"\.experts\.")
    transposed = moe()
    transposed.model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(SherryError, match="not \\[out_features, in_features\\]"):
        convert_to_sherry(transposed)


def test_other_methods_do_not_pass_for_sherry(model_of):
    model = model_of()
    quantize_model(model, "twn", Granularity())
    assert (model.config.quant_method, model.config.w_bits) == ("twn", 0)
    model = model_of()
    quantize_model(model, "binary", Granularity())
    assert (model.config.quant_method, model.config.w_bits) == ("binary", 1)


def test_a_regex_that_would_take_years(monkeypatch):
    """It may have come with the model."""
    monkeypatch.setattr("sherry_gguf.checkpoint.declared._MATCHING_TIME", 0.2)
    model = nn.ModuleDict({"layers": nn.ModuleDict({"a" * 50: nn.Linear(LENGTH, ROWS)})})
    with pytest.raises(SherryError, match="takes too long"):
        swap_linears(model, SherryLinear, Granularity("per_channel"), r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1[!?]|\9q")
