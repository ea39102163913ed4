"""Models in which no tensor can be left in another order unnoticed: norms and biases are random too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# name -> family and configuration. Hidden, heads and FFN have other numbers of channels where a family allows it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_attention_heads": 8, "intermediate_size": 768, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"intermediate_size": 768, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"num_attention_heads": 4, "head_dim": 128, "num_key_value_heads": 1}),
}


@pytest.fixture(scope="session")
def trained_model(random_checkpoint: Callable[..., Path], sherry_config: dict[str, Any]) -> Callable[..., Path]:
    """A factory: the directory of one of MODELS, its latents declared to have scales per channel or tensor.

    A directory is made once: tests that change one copy it.
    """

    @functools.cache
    def make(model: str, granularity: str = "per_channel", **changes: Any) -> Path:
        family, settings = MODELS[model]
        sherry = {**sherry_config, "granularity": granularity}
        directory = random_checkpoint(family, sherry=sherry, **{**settings, **changes})
        path = directory / "model.safetensors"
        state = load_file(path)
        generator = torch.Generator().manual_seed(2)
        for name, tensor in state.items():
            if tensor.ndim == 1:
                noise = torch.randn(tensor.shape, generator=generator)
                state[name] = ("norm" in name) + 0.3 * noise
            elif "embed" in name or "lm_head" in name:
                state[name] = 0.1 * torch.randn(tensor.shape, generator=generator)  # logits of a size as models have
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, path, {"format": "pt"})
        return directory

    return make
