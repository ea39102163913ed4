"""Whether llama.cpp will find in a file what its metadata promise: every tensor, in the shape that is asked for.

Upstream's converter writes what it is given, and llama.cpp refuses the file when somebody loads it. What all decoders
have is checked for all of them; rows of projections where their sizes follow from the metadata alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sherry_gguf.convert.type_choice import OUTPUT, TOKEN_EMBEDDING
from sherry_gguf.errors import SherryError

OUTPUT_NORM = "output_norm.weight"

# Architectures whose blocks have these sizes and no others; elsewhere a query may hold a gate, or be compressed.
_PLAIN = ("llama", "qwen2", "qwen3", "qwen3moe", "hunyuan-dense", "hunyuan-moe")

# A tensor of a block: a model has one stack of them, or an encoder's and a decoder's.
_IN_BLOCK = re.compile(r"^(?P<stack>(enc\.|dec\.)?)blk\.(?P<index>\d+)\.(?P<rest>.+)$")

# The matrices and norms of a decoder block; what else is in one differs between the layers of some architectures.
_IN_ALL = re.compile(r"^(attn_(q|k|v|qkv|output|norm|q_norm|k_norm)|ffn_(gate|up|down)(_exps)?|ffn_norm)\.weight$")


def require_whole_blocks(names: Iterable[str], block_count: int) -> None:
    """Raise SherryError if a block has no tensors, or lacks a weight that a block alike has: a checkpoint in parts."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if parts := _IN_BLOCK.match(name):
            stacks.setdefault(parts["stack"], {}).setdefault(int(parts["index"]), set()).add(parts["rest"])
    for stack, found in (stacks or {"": {}}).items():
        # of a decoder behind an encoder the number is its own
        count = max(found) + 1 if stack == "dec." else block_count
        _require_whole({number: set() for number in range(count)} | found, count)


def _require_whole(blocks: Mapping[int, set[str]], block_count: int) -> None:
    for number, found in blocks.items():
        # hybrid layers and dense layers among experts have other tensors, not fewer of the same
        lacking = {name for other in blocks.values() if found < other for name in other - found if _IN_ALL.search(name)}
        if not found or lacking:
            what = min(lacking) if found else "any tensor"
            raise SherryError(
                f"the checkpoint is not complete: layer {number} of {block_count} lacks {what}; download it again"
            )


def require_loadable(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], known: Iterable[str], *, tied: bool
) -> None:
    """Raise SherryError for a tensor that llama.cpp will miss, or want in another shape.

    metadata  of the file, by key
    shapes    of the tensors to write, as PyTorch has them
    known     the names of tensors that are in no block and that the architecture can have
    tied      the embedding is the output as well, where there is no output
    """
    architecture = metadata["general.architecture"]
    width = metadata.get(f"{architecture}.embedding_length")
    tokens = len(metadata.get("tokenizer.ggml.tokens", ())) or metadata.get(f"{architecture}.vocab_size")
    outer = {TOKEN_EMBEDDING: (tokens, width), OUTPUT_NORM: (width,), OUTPUT: (tokens, width)}
    for name, wanted in outer.items():
        if name in known and not (name == OUTPUT and tied and name not in shapes):
            _require(name, wanted, shapes)
    if architecture in _PLAIN:
        for name, wanted in _blocks(metadata, architecture, shapes):
            _require(name, wanted, shapes)


def _blocks(
    metadata: Mapping[str, Any], architecture: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """(name, shape) of the tensors of all blocks; of experts' and dense feed-forward layers those that are there."""

    def value(key: str, block: int) -> Any:
        found = metadata.get(f"{architecture}.{key}")
        return found[block] if isinstance(found, list | tuple) else found

    for block in range(metadata[f"{architecture}.block_count"]):
        width, heads = value("embedding_length", block), value("attention.head_count", block)
        kv_heads = value("attention.head_count_kv", block) or heads
        key = value("attention.key_length", block) or width // heads
        val = value("attention.value_length", block) or width // heads
        hidden, experts = value("feed_forward_length", block), value("expert_count", block)
        expert_hidden = value("expert_feed_forward_length", block) or hidden
        for name, shape in {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "attn_q": (heads * key, width),
            "attn_k": (kv_heads * key, width),
            "attn_v": (kv_heads * val, width),
            "attn_output": (width, heads * val),
        }.items():
            yield f"blk.{block}.{name}.weight", shape
        for name, shape in {
            "ffn_gate": (hidden, width),
            "ffn_up": (hidden, width),
            "ffn_down": (width, hidden),
            "ffn_gate_exps": (experts, expert_hidden, width),
            "ffn_up_exps": (experts, expert_hidden, width),
            "ffn_down_exps": (experts, width, expert_hidden),
        }.items():
            if f"blk.{block}.{name}.weight" in shapes:
                yield f"blk.{block}.{name}.weight", shape


def _require(name: str, wanted: tuple[int | None, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if name not in shapes:
        raise SherryError(f"the checkpoint is not complete: it has nothing that becomes {name}; download it again")
    if None not in wanted and shapes[name] != wanted:
        raise SherryError(
            f"{name} has shape {list(shapes[name])}, and by config.json and the tokenizer it has {list(wanted)}; "
            f"the checkpoint's files do not belong together"
        )
