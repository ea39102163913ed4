"""Small random models of the architectures that Sherry was published for: Hunyuan dense (Hy-MT) and HY_V4 (Hy4)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# The quantizers of config.json, by the type that holds what they make.
QUANTIZERS = {
    "SHERRY": {"granularity": "per_group", "group_size": 128},
    "SHERRY_G32": {"granularity": "per_group", "group_size": 32},
    "STQ1_0": {"granularity": "per_group", "group_size": 256, "sherry_grid": "stride16"},
}

# Multi-head latent attention, three layers: dense with an indexer, experts with one, experts that share the last.
# Every position is selected (index_topk), as a near tie among the scores would be a jump.
ROPE, NOPE, LATENT, INDEXER = 32, 64, 128, 64
_HY_V4 = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 256,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 128,
    "kv_lora_rank": LATENT,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": 64,
    "index_topk": 2048,
    "index_head_dim": INDEXER,
    "index_n_heads": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "indexer_types": ["full", "full", "shared"],
}
_CHANGES: dict[str, dict[str, Any]] = {"HunYuanDenseV1": {}, "HYV4": _HY_V4}


@pytest.fixture(scope="session")
def published_checkpoint(
    random_checkpoint: Callable[..., Path], sherry_config: dict[str, Any]
) -> Callable[[str, str], Path]:
    """make("HYV4", "STQ1_0"): a model of that family, declared Sherry on the grid of that type; one for both is made.

    Its norms, biases and sinks are random too, as constant ones could be swapped unseen.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, grid: str) -> Path:
        if (family, grid) not in made:
            sherry = sherry_config | QUANTIZERS[grid]
            made[family, grid] = random_checkpoint(family, sherry=sherry, **_CHANGES[family])
            _rewrite(made[family, grid], _as_published)
        return made[family, grid]

    return make


def _rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = model / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _as_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers reads HY_V4's published names, which upstream's converter knows, and saves some of them wrong."""
    generator = torch.Generator().manual_seed(2)
    published = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.hc_pre\.(hc_(?:attn|mlp)_layer)\.", r".\1.hc_pre.", name)
        name = name.replace("model.hc_pre.hc_head.", "model.hc_head.")
        name = re.sub(r"\.(mlp|shared_experts)\.linear_gate\.", r".\1.gate_proj.", name)
        if tensor.dim() == 1:
            tensor = tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        published[name] = tensor
    return published


@pytest.fixture
def for_transformers(tmp_path: Path) -> Callable[[Path], Path]:
    """make(model): a copy of an HY_V4 checkpoint, of which transformers computes what llama.cpp does of the original.

    Of a head's rotated dimensions llama.cpp pairs neighbours, as its authors found the reference to do; transformers
    5.23 pairs the first half with the second. The same model in that order: evens first, then odds.
    """
    order = torch.cat([torch.arange(0, ROPE, 2), torch.arange(1, ROPE, 2)])
    heads = {
        r"self_attn\.q_b_proj\.weight$": NOPE + ROPE,
        r"self_attn\.kv_a_proj_with_mqa\.weight$": LATENT + ROPE,
        r"indexer\.(wq_b\.weight|wk\.weight|k_norm\.weight|k_norm\.bias)$": INDEXER,
    }

    def reorder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            for pattern, size in heads.items():
                if re.search(pattern, name):
                    rows = tensor.reshape(-1, size, *tensor.shape[1:])
                    rotated = rows[:, size - ROPE :][:, order]  # the last of a head
                    tensors[name] = torch.cat([rows[:, : size - ROPE], rotated], dim=1).reshape(tensor.shape)
        return tensors

    def make(model: Path) -> Path:
        copy = tmp_path / "in-halves"
        shutil.copytree(model, copy)
        _rewrite(copy, reorder)
        return copy

    return make
