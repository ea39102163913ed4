"""Bytes by class of tensor: as the file has them, and as the same tensors would have in other types.

The other types are those of a file whose linear layers and tables are all stored so; they are computed from the shapes
and nothing is quantized. A row that is no multiple of a block takes the type that llama-quantize falls back to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from sherry_gguf.files.tensor import FileTensor

CLASSES: Final = ("embedding", "output", "attention", "feed-forward", "norms and the rest")
OTHER_TYPES: Final = ("TQ2_0", "Q4_K_M", "F16")

# (weights, bytes) of a block
_BLOCKS: Final = {
    "F16": (1, 2), "TQ2_0": (256, 66), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "Q5_0": (32, 22), "Q8_0": (32, 34),
}  # fmt: skip
_FALLBACK: Final = {"TQ2_0": "F16", "Q4_K": "Q5_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q8_0": "F16"}
_BLOCK_NAME: Final = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def layer_of(name: str) -> tuple[int, str] | None:
    """``blk.3.ffn_up.weight`` -> (3, "ffn_up"); None for a tensor of no layer."""
    found = _BLOCK_NAME.fullmatch(name)
    return None if found is None else (int(found[1]), found[2])


def class_of(tensor: FileTensor) -> str:
    """The class of ``CLASSES`` that a tensor is in, by its name and shape."""
    place = layer_of(tensor.name)
    if len(tensor.info.shape) < 2:
        return CLASSES[4]
    if place is None:
        return {"token_embd.weight": CLASSES[0], "output.weight": CLASSES[1]}.get(tensor.name, CLASSES[4])
    return next(
        (c for prefix, c in (("attn", CLASSES[2]), ("ffn", CLASSES[3])) if place[1].startswith(prefix)), CLASSES[4]
    )


def sizes(tensors: Sequence[FileTensor]) -> dict[str, dict[str, int]]:
    """Label -> class -> bytes without padding: "this file", and ``OTHER_TYPES``. Vectors stay as they are."""
    layers = 1 + max((place[0] for t in tensors if (place := layer_of(t.name))), default=0)
    is_tied = not any(tensor.name == "output.weight" for tensor in tensors)
    of_type: dict[str, Callable[[FileTensor], int]] = {
        "this file": lambda t: t.n_bytes,
        "TQ2_0": lambda t: _bytes(t, "TQ2_0") if layer_of(t.name) else t.n_bytes,
        "Q4_K_M": lambda t: _bytes(t, _type_in_q4_k_m(t, layers, is_tied)),
        "F16": lambda t: _bytes(t, "F16"),
    }
    found = {}
    for label, size in of_type.items():
        found[label] = dict.fromkeys(CLASSES, 0)
        for tensor in tensors:
            found[label][class_of(tensor)] += size(tensor)
    return found


def _bytes(tensor: FileTensor, name: str) -> int:
    if class_of(tensor) == CLASSES[4]:
        return tensor.n_bytes  # small, and the same in every file
    while tensor.info.row % _BLOCKS[name][0]:
        name = _FALLBACK[name]
    weights, size = _BLOCKS[name]
    return tensor.info.weights // weights * size


def _type_in_q4_k_m(tensor: FileTensor, layers: int, is_tied: bool) -> str:
    """llama-quantize's rule for dense models: Q6_K where errors cost most, and Q4_K elsewhere."""
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and is_tied):
        return "Q6_K"
    place = layer_of(tensor.name)
    if place is None:
        return "Q4_K"
    layer, role = place
    if role == "attn_qkv":
        return "Q5_K"
    eighth = layers // 8
    is_first_or_last = layer < eighth or layer >= 7 * layers // 8
    needs_more = is_first_or_last or (layer - eighth) % 3 == 2
    return "Q6_K" if needs_more and role in ("attn_v", "ffn_down") else "Q4_K"
