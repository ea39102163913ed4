"""Groups of consecutive weights -> STQ1_0's groups, 16 weights apart, by an order of channels the model cannot notice.

A group of SHERRY is weights 4g..4g+3 of a row, one of STQ1_0 weights g, g+16, g+32 and g+48 of 64 neighbours. So where
each 64 neighbouring input channels are put in another order, channel 4g+p at place g+16p, one grid is the other. The
matrix computes the same once whatever makes these channels is put in that order too:

    hidden      the residual stream: embedding and head, norms over it, what reads it (q, k, v, gate, up) and adds to
                it (o, down)
    ffn         rows of gate and up, columns of down
    attention   columns of o, all heads of queries; values, the rows of v, are the same channels for a head of keys

Rows of q and k stay, so that rotary embeddings and norms of a head find what they did. Only the order in which floats
are summed changes. No weight does: scales of a row go with their row, and those of 64, 128, 256 .. weights stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from sherry_gguf.errors import SherryError
from sherry_gguf.formats.groups import GROUP, PERIOD, STRIDE
from sherry_gguf.formats.stq1_0 import STQ1_0

KEY: Final = "sherry.regrid"  # string in a GGUF whose channels are in the order made here; absent: in the checkpoint's
EXACT: Final = "exact"

REGRIDDED: Final = STQ1_0  # the type whose grid the new order is for
_PERIOD = PERIOD["stride16"]  # neighbours of which 16 groups are made, and which no channel leaves

# What the channels along a dimension are. The first four are put in order; the others are kept as they are.
_HIDDEN, _FFN, _ATTENTION, _VALUES = "hidden", "ffn", "attention", "values"
_QUERIES, _KEYS, _HEAD, _ROTATION, _VOCABULARY = "queries", "keys", "head", "rotation", "vocabulary"
_MOVED = (_HIDDEN, _FFN, _ATTENTION, _VALUES)

_MODEL = {
    "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
    "model.norm.weight": (_HIDDEN,),
    "lm_head.weight": (_VOCABULARY, _HIDDEN),
}
_MATRICES = {
    "self_attn.q_proj": (_QUERIES, _HIDDEN),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.v_proj": (_VALUES, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _ATTENTION),
    "mlp.gate_proj": (_FFN, _HIDDEN),
    "mlp.up_proj": (_FFN, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _FFN),
}
_LAYER = {
    "input_layernorm.weight": (_HIDDEN,),
    "post_attention_layernorm.weight": (_HIDDEN,),
    **{f"{name}.weight": axes for name, axes in _MATRICES.items()},
}


def _biases(*modules: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.bias": axes[:1] for name, axes in _MATRICES.items() if name.startswith(modules)}


# Of each architecture, by config.json's name: every tensor that a decoder layer of it can have.
_ARCHITECTURES = {
    "LlamaForCausalLM": _LAYER
    | _biases("self_attn", "mlp")
    | {"self_attn.rotary_emb.inv_freq": (_ROTATION,)},  # a buffer that old checkpoints have
    "Qwen2ForCausalLM": _LAYER | _biases("self_attn.q", "self_attn.k", "self_attn.v"),
    "Qwen3ForCausalLM": _LAYER
    | _biases("self_attn")
    | {"self_attn.q_norm.weight": (_HEAD,), "self_attn.k_norm.weight": (_HEAD,)},
}
_IN_LAYER = re.compile(r"model\.layers\.\d+\.(.+)")


def is_projection(name: str) -> bool:
    """Whether a tensor is the weight of one of the seven linear layers of a decoder layer."""
    found = _IN_LAYER.fullmatch(name)
    return found is not None and found[1].removesuffix(".weight") in _MATRICES


def moved_dims(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model, its config.json -> which dimensions of each ``to_stride`` is for.

    Raises SherryError for an architecture, a tensor or a shape that the rules above do not know, and for channels that
    do not fill STQ1_0's blocks: nothing is left as it was for want of a rule.
    """
    rules = _rules(config)
    sizes = _sizes(config)
    dims = {}
    for name, shape in shapes.items():
        in_layer = _IN_LAYER.fullmatch(name)
        axes = _MODEL.get(name) if in_layer is None else rules.get(in_layer[1])
        if axes is None:
            raise SherryError(f"{name}: regridding has no rule for this tensor of {_architecture(config)}")
        wanted = [sizes.get(axis) for axis in axes]
        if len(shape) != len(axes) or any(size not in (None, n) for n, size in zip(shape, wanted, strict=True)):
            raise SherryError(
                f"{name}: has shape {list(shape)}, which is not {' x '.join(axes)} as config.json has them "
                f"({', '.join(f'{axis} {sizes[axis]}' for axis in axes if axis in sizes)})"
            )
        dims[name] = tuple(dim for dim, axis in enumerate(axes) if axis in _MOVED)
    return dims


def to_stride(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Any dtype, these dimensions multiples of 64 -> a new tensor (but for no dims), 4g+p of each 64 at g+16p."""
    for dim in dims:
        tensor = tensor.unflatten(dim, (-1, STRIDE, GROUP)).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)
    return tensor


def to_consecutive(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """The inverse of ``to_stride``."""
    for dim in dims:
        tensor = tensor.unflatten(dim, (-1, GROUP, STRIDE)).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)
    return tensor


def require_known(order: object) -> None:
    """Raise SherryError if the value of KEY in a file is none that is known here."""
    if order != EXACT:
        raise SherryError(f"{KEY} is {order!r}, this sherry-gguf knows {EXACT!r} alone; install a newer one")


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else f"{names}"


def _rules(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    rules = _ARCHITECTURES.get(_architecture(config))
    if rules is None:
        raise SherryError(
            f"regridding knows which channels belong together in {', '.join(_ARCHITECTURES)}, "
            f"not in {_architecture(config)}"
        )
    if config.get("use_sliding_window") or set(config.get("layer_types") or ()) - {"full_attention"}:
        raise SherryError(f"regridding knows {_architecture(config)} with full attention in all layers alone")
    return rules


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Channels of each axis but the vocabulary's. SherryError where they do not fill periods and blocks."""
    hidden, ffn, heads = (_size(config, key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head_dim = hidden // heads if config.get("head_dim") is None else _size(config, "head_dim")
    kv_heads = heads if config.get("num_key_value_heads") is None else _size(config, "num_key_value_heads")
    if head_dim % _PERIOD:
        raise SherryError(
            f"regridding needs heads of a multiple of {_PERIOD} channels, these have {head_dim} (head_dim)"
        )
    for what, size in (("hidden_size", hidden), ("intermediate_size", ffn), ("heads x head_dim", heads * head_dim)):
        if size % STQ1_0.block:
            raise SherryError(f"regridding needs rows of a multiple of {STQ1_0.block} weights, {what} is {size}")
    return {
        _HIDDEN: hidden,
        _FFN: ffn,
        _ATTENTION: heads * head_dim,
        _QUERIES: heads * head_dim,
        _KEYS: kv_heads * head_dim,
        _VALUES: kv_heads * head_dim,
        _HEAD: head_dim,
    }


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise SherryError(f"config.json: {key} is {value!r}, not a positive integer")
    return value
