"""More bits for the matrices that need them most: a few in a stock type, the others in planes.

A matrix that planes change much, such as the values of an attention with few heads, may have few weights. So a budget
beyond the planes' own bits is spent where a bit takes away most of the squared error of a matrix's outputs on the text,
relative to their squares: every matrix counts alike, large or small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

_BLOCK: Final = 256
_OF_WHOLE_BLOCKS: Final = ("q4_K", "q6_K")
_OF_OTHERS: Final = ("q4_0", "q8_0")  # blocks of 32


def alternatives(k: int) -> tuple[str, ...]:
    """The types, as ``--tensor-type`` has them, that a matrix with rows of k weights can have instead of planes."""
    return _OF_OTHERS if k % _BLOCK else _OF_WHOLE_BLOCKS


def bits(type_name: str) -> float:
    """Of a weight in a type. Needs llama_cpp.use_pinned_gguf() first, as there_and_back does."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name.upper()]]
    return float(8 * size / block)


def there_and_back(weights: torch.Tensor, type_name: str) -> torch.Tensor:
    """float32[rows, k] -> the same, as a reader of the type's blocks has them."""
    import gguf

    qtype = gguf.GGMLQuantizationType[type_name.upper()]
    blocks = gguf.quants.quantize(weights.cpu().numpy().astype(np.float32, copy=False), qtype)
    return torch.from_numpy(gguf.quants.dequantize(blocks, qtype)).to(weights.device)


def spend(
    losses: Mapping[str, float],
    instead: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    own_bits: float,
    budget: float,
) -> dict[str, str]:
    """Which matrices get which type instead of planes.

    losses    name -> what planes lose: squared error of the outputs by their squares
    instead   name -> type -> the same in that type
    sizes     name -> weights
    own_bits  of a weight in planes
    budget    bits of a weight, in the mean of all matrices, at most
    """
    chosen: dict[str, str] = {}
    left = (budget - own_bits) * sum(sizes.values())

    def now(name: str) -> tuple[float, float]:
        """Loss and bits of a matrix as it is chosen so far."""
        if name in chosen:
            return instead[name][chosen[name]], bits(chosen[name])
        return losses[name], own_bits

    def steps(name: str) -> list[tuple[float, float, str, str]]:
        """(what a bit gains, bits, name, type) of each way to spend more on a matrix that can be paid and gains."""
        loss, paid = now(name)
        costs = {type_name: (bits(type_name) - paid) * sizes[name] for type_name in instead.get(name, ())}
        gains = {type_name: loss - instead[name][type_name] for type_name in costs}
        return [
            (gains[type_name] / cost, cost, name, type_name)
            for type_name, cost in costs.items()
            if 0 < cost <= left and gains[type_name] > 0
        ]

    while found := [step for name in losses for step in steps(name)]:
        _, cost, name, type_name = max(found)
        chosen[name] = type_name
        left -= cost
    return chosen
