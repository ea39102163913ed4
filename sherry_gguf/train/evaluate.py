"""Perplexity of a model in PyTorch on texts, scored as llama-perplexity does (``parity.measure``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sherry_gguf.errors import SherryError, Way
from sherry_gguf.parity import scoring
from sherry_gguf.train.data import bos_of


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, texts: Sequence[Path], ctx_size: int, batch: int = 8) -> float:
    """exp of the mean negative log-likelihood of the second half of each chunk of ctx_size tokens, each text by itself.

    The model is in evaluation mode, in whatever dtype it has. Raises SherryError if no text has a whole chunk.
    """
    bos, first = bos_of(tokenizer), scoring.first_scored(ctx_size)
    total, count = 0.0, 0
    for text in texts:
        tokens = np.array(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"], dtype=np.int32)
        chunks = torch.from_numpy(scoring.cut(tokens, ctx_size, bos).astype(np.int64))
        for part in chunks.split(batch):
            part = part.to(model.device)
            logits = model(part).logits[:, first:-1].flatten(0, 1).float()
            total += float(functional.cross_entropy(logits, part[:, first + 1 :].flatten(), reduction="sum"))
            count += len(logits)
    if count == 0:
        raise SherryError(f"{', '.join(map(str, texts))}: less text than one chunk of {ctx_size} tokens", Way.CONTEXT)
    return math.exp(total / count)
