"""Small checkpoints as their files: name -> bytes. They are whole, and what fuzz.py changes."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import numpy as np
import sentencepiece
from safetensors.numpy import save

HIDDEN, ROWS = 128, 8
VOCABULARY = 300  # of which 256 are the bytes
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
INDEX = "model.safetensors.index.json"

SHERRY = {"w_bits": 0, "quant_method": "sherry", "granularity": "per_group", "group_size": 128, "N": 3, "M": 4}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "vocab_size": ROWS,
    **SHERRY,
}
MODEL = {
    **CONFIG,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


@cache
def layers() -> dict[str, bytes]:
    """Linear layers of two small blocks and an embedding, which can be loaded but are no model, in two shards."""
    noise = np.random.default_rng(0)
    shards: list[dict[str, np.ndarray]] = [{}, {}]
    for layer, shard in enumerate(shards):
        for name in LINEAR:
            values = noise.standard_normal((ROWS, HIDDEN)).astype(np.float32)
            shard[f"model.layers.{layer}.{name}.weight"] = values
    shards[0]["model.embed_tokens.weight"] = noise.standard_normal((ROWS, HIDDEN)).astype(np.float32)
    return _files(CONFIG, shards)


@cache
def whole_model() -> dict[str, bytes]:
    """A Llama of one block with a tokenizer, in two shards."""
    noise = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return (noise.standard_normal(shape) / 20).astype(np.float32)

    shapes = {
        **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qo"},
        **{f"self_attn.{name}_proj": (HIDDEN // 2, HIDDEN) for name in "kv"},
        **{f"mlp.{name}_proj": (HIDDEN, HIDDEN) for name in ("gate", "up", "down")},
        **{f"{name}_layernorm": (HIDDEN,) for name in ("input", "post_attention")},
    }
    block = {f"model.layers.0.{name}.weight": values(*shape) for name, shape in shapes.items()}
    ends = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}
    others = {f"{name}.weight": values(*shape) for name, shape in ends.items()}
    return {**_files(MODEL, [block, others]), "tokenizer.model": _tokenizer()}


def _files(config: dict[str, Any], shards: list[dict[str, np.ndarray]]) -> dict[str, bytes]:
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(len(shards))]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return {
        "config.json": json.dumps(config).encode(),
        INDEX: json.dumps(index).encode(),
        **{name: save(shard) for name, shard in zip(names, shards, strict=True)},
    }


def _tokenizer() -> bytes:
    """A SentencePiece model of bytes, and of what follows from a short text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the people of this nation have kept their union and its laws"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()
