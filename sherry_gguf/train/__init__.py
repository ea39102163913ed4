"""Training Sherry models: quantization-aware, with Arenas, on transformers' Trainer.

    methods    what latent weights become
    layers     Linears that multiply with that
    arenas     anneals their residual
    data       texts -> blocks of tokens
    options    what a training can be told
    trainer    transformers' Trainer, with a teacher
    measures   watches weights and gradients; plot draws the log
    directory  loads and saves models
    evaluate   perplexity
    training   one training, from directories to a directory

Needs the extra ``train`` (``pip install 'sherry-gguf[train]'``).
"""

from __future__ import annotations

from sherry_gguf.train.arenas import ArenasCallback, residual_weight
from sherry_gguf.train.layers import SherryLinear, convert_to_sherry

__all__ = ["ArenasCallback", "SherryLinear", "convert_to_sherry", "residual_weight"]
