"""Linear layers that hold latent weights and multiply with quantized ones, and putting them into a model.

Backwards, the quantizer counts as the identity (a straight-through gradient). In training a layer may add a residual
of its latents (``arenas.py``):

    Y = X (Q(W) + lambda W),   dL/dW = (1 + lambda) dL/dY^T X

At inference lambda is 0, and a layer is what the converter makes of it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sherry_gguf.checkpoint.declared import SHERRY_LAYERS, matching
from sherry_gguf.errors import SherryError, Way, naming
from sherry_gguf.train.experts import QuantizedExperts, quantize_experts
from sherry_gguf.train.methods import QUANTIZERS
from sherry_gguf.train.straight_through import StraightThrough
from sherry_gguf.weights.granularity import Granularity


class QuantizedLinear(nn.Linear):
    """A Linear of latent weights [out_features, in_features] that multiplies with what its method makes of them.

    granularity  which weights share a scale
    residual     Arenas' lambda; only a layer in training mode adds it
    """

    method: ClassVar[str]
    granularity: Granularity
    residual: float

    @classmethod
    def of(cls, linear: nn.Linear, granularity: Granularity) -> QuantizedLinear:
        """The same parameters, quantized in the forward. SherryError where rows do not divide into scale runs."""
        granularity.run_length(linear.out_features, linear.in_features)
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.granularity, layer.residual = granularity, 0.0
        return layer

    @torch.no_grad()
    def quantized_weight(self) -> Tensor:
        """What the layer multiplies with at inference: [out_features, in_features], the dtype of the latents."""
        length = self.granularity.run_length(self.out_features, self.in_features)
        return QUANTIZERS[self.method](self.weight.reshape(-1, length)).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        residual = self.residual if self.training else 0.0
        weight: Tensor = StraightThrough.apply(self.weight, self.quantized_weight(), residual)
        return functional.linear(input, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.granularity}"


class SherryLinear(QuantizedLinear):
    """3:4 sparse ternary, 1.25 bits a weight."""

    method = "sherry"


class AbsmeanLinear(QuantizedLinear):
    """Dense ternary as BitNet b1.58 has it."""

    method = "absmean"


class TwnLinear(QuantizedLinear):
    """Dense ternary as Ternary Weight Networks have it."""

    method = "twn"


class BinaryLinear(QuantizedLinear):
    """Signs."""

    method = "binary"


class TequilaLinear(QuantizedLinear):
    """Dense ternary whose dead weights, those that are zero, act as a bias (arXiv 2509.23809):

    Y = X Q(W) + dead_gain * sum of the dead weights of each row

    so that they get a gradient of their own. At inference that sum is a bias, fixed.
    """

    method = "tequila"
    dead_gain: ClassVar[float] = 1e-3  # the published trainer's default

    def dead_bias(self, quantized: Tensor) -> Tensor:
        """[out_features] of quantized [out_features, in_features]."""
        return self.dead_gain * (self.weight * (quantized == 0)).sum(-1)

    def forward(self, input: Tensor) -> Tensor:
        quantized = self.quantized_weight()
        bias = self.dead_bias(quantized)
        weight: Tensor = StraightThrough.apply(self.weight, quantized, 0.0)
        return functional.linear(input, weight, bias if self.bias is None else self.bias + bias)


METHODS: dict[str, type[QuantizedLinear]] = {
    layer.method: layer for layer in (SherryLinear, AbsmeanLinear, TwnLinear, TequilaLinear, BinaryLinear)
}


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Name -> layer, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def swap_linears(
    model: nn.Module, layer_class: type[QuantizedLinear], granularity: Granularity, layers: str = SHERRY_LAYERS
) -> list[str]:
    """Quantize the Linears whose names match the regex, and the experts that are held in one parameter, in place.

    Returns their names. Parameters stay the same objects. Raises SherryError if none matches, if one is quantized
    already, and as ``experts.quantize_experts`` does.
    """
    linears = {f"{name}.weight": (name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    several = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 2}
    matched = matching(layers, [*linears, *several])
    found = [linears[name] for name in matched if name in linears]
    stacked = [name for name in matched if name in several]
    if not matched:
        raise SherryError(f"no linear layer's name matches {layers}", Way.NAME_LAYERS)
    for module in {name.rpartition(".")[0]: None for name in stacked}:
        experts = model.get_submodule(module)
        stacks = [name.rpartition(".")[2] for name in stacked if name.rpartition(".")[0] == module]
        if isinstance(experts, QuantizedExperts):
            raise SherryError(f"{module} is quantized already")
        with naming(f"{module}.{stacks[0]}"):
            quantize_experts(experts, stacks, layer_class.method, granularity)
    for name, linear in found:
        if isinstance(linear, QuantizedLinear):
            raise SherryError(f"{name} is quantized already")
        with naming(name):
            model.set_submodule(name, layer_class.of(linear, granularity))
    return [*(name for name, _ in found), *stacked]


def convert_to_sherry(model: Any, granularity: Granularity | None = None, layers: str = SHERRY_LAYERS) -> list[str]:
    """Make the decoder's linear layers of a transformers causal LM Sherry's, in place; return their names.

    What ``save_pretrained`` then writes is a directory of latents that declares them in config.json, as the published
    trainer saves it: AngelSlim evaluates it and ``sherry-gguf convert`` takes it as it is.
    """
    return quantize_model(model, "sherry", granularity or Granularity(), layers)


def quantize_model(model: Any, method: str, granularity: Granularity, layers: str = SHERRY_LAYERS) -> list[str]:
    """``convert_to_sherry`` for any of METHODS; config.json names the method, and only "sherry" is taken for Sherry."""
    names = swap_linears(model, METHODS[method], granularity, layers)
    # the published trainer's keys; its Sherry reads the last three and does nothing with them
    keys: dict[str, object] = {"w_bits": 1 if method == "binary" else 0, "quant_method": method, "N": 3, "M": 4}
    keys |= {"granularity": granularity.sharing, "group_size": granularity.group_size}
    keys |= {"enable_zero_point": False, "range_of_lambada": 0.01, "eps": TequilaLinear.dead_gain}
    model.config.update(keys)
    if layers != SHERRY_LAYERS:
        model.config.sherry_layers = layers  # this project's own key: which of the linear layers these are
    elif hasattr(model.config, "sherry_layers"):
        del model.config.sherry_layers
    return names
