"""Experts that transformers holds in one parameter [experts, out_features, in_features], quantized in the forward.

The module stays what it is: its parameters keep their names, so that it is saved and read as before. While it computes,
the quantized weights stand before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sherry_gguf.errors import SherryError
from sherry_gguf.train.methods import QUANTIZERS
from sherry_gguf.train.straight_through import StraightThrough
from sherry_gguf.weights.granularity import Granularity


class QuantizedExperts(nn.Module):
    """In front of the bases of an experts' class. stacks: names of the quantized parameters; the others as of
    ``layers.QuantizedLinear``."""

    method: str
    granularity: Granularity
    residual: float
    stacks: tuple[str, ...]

    @torch.no_grad()
    def quantized_weight(self, name: str) -> Tensor:
        """What all experts multiply with at inference: [experts, out_features, in_features]."""
        weight = self._parameters[name]
        assert weight is not None
        length = self.granularity.run_length(*weight.shape[-2:])
        return QUANTIZERS[self.method](weight.reshape(-1, length)).view_as(weight)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        residual = self.residual if self.training else 0.0
        for name in self.stacks:
            # an attribute of the instance, which Python finds before it asks Module for the parameter
            weight = StraightThrough.apply(self._parameters[name], self.quantized_weight(name), residual)
            self.__dict__[name] = weight
        try:
            return super().forward(*args, **kwargs)
        finally:
            for name in self.stacks:
                del self.__dict__[name]


def quantize_experts(experts: nn.Module, stacks: Sequence[str], method: str, granularity: Granularity) -> None:
    """Make a module of experts quantized, in place.

    Raises SherryError where a parameter holds more than one matrix's worth of what shares a scale, where it does not
    have the orientation of a Linear, and for Tequila, whose biases experts have no place for.
    """
    if getattr(experts, "is_transposed", True):
        raise SherryError("holds several matrices that are not [out_features, in_features]: only those can be")
    if method == "tequila":
        raise SherryError("holds several matrices, which have no place for Tequila's biases")
    if granularity.sharing == "per_tensor":
        raise SherryError("holds several matrices, of which per_tensor scales cannot be told apart")
    for name in stacks:
        granularity.run_length(*experts.get_parameter(name).shape[-2:])
    cls = type(experts)
    experts.__class__ = type(f"Quantized{cls.__name__}", (QuantizedExperts, cls), {})
    assert isinstance(experts, QuantizedExperts)
    experts.method, experts.granularity, experts.residual = method, granularity, 0.0
    experts.stacks = tuple(stacks)
