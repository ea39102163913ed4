"""Training Sherry models: quantization-aware, with Arenas, on transformers' Trainer.

``methods`` says what latent weights become, ``layers`` are Linears that do so, ``arenas`` anneals their residual,
``data`` cuts texts into blocks, ``trainer`` runs, ``measures`` watches weights and gradients, ``directory`` loads and
saves. Needs the extra ``train`` (``pip install 'sherry-gguf[train]'``).
"""

from __future__ import annotations

from sherry_gguf.train.arenas import ArenasCallback, residual_weight
from sherry_gguf.train.layers import SherryLinear, convert_to_sherry

__all__ = ["ArenasCallback", "SherryLinear", "convert_to_sherry", "residual_weight"]
