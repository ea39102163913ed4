"""Which alpha makes the best of a sparse ternary LoRA: that of the lowest perplexity on a text, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer

from sherry_gguf.adapter.lora import Lora
from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.tokens import transformers_errors
from sherry_gguf.convert.plan import make_plan
from sherry_gguf.errors import SherryError
from sherry_gguf.parity.reference import open_trained
from sherry_gguf.train.evaluate import perplexity

Tensors = Mapping[str, torch.Tensor]


class Scorer:
    """Perplexities of a Sherry model with a LoRA on texts, each by itself in chunks of ctx_size tokens.

    Raises SherryError for a base that is neither Sherry nor dense ternary, or that the LoRA does not fit.
    """

    def __init__(self, lora: Lora, texts: Sequence[Path], ctx_size: int) -> None:
        checkpoint = Checkpoint(lora.base)
        base = open_trained(checkpoint, make_plan(checkpoint))
        with transformers_errors(lora.base, "its tokenizer cannot be loaded"):
            self.tokenizer = AutoTokenizer.from_pretrained(lora.base, trust_remote_code=False)
        with transformers_errors(lora.directory, f"does not fit {lora.base}"):
            self.model: Any = PeftModel.from_pretrained(base, lora.directory).eval()
        self.texts, self.ctx_size = texts, ctx_size
        names, there = set(lora.tensors()), set(get_peft_model_state_dict(self.model))
        if names != there:
            raise SherryError(f"{lora.directory}: has tensors of another model than {lora.base}, {min(names ^ there)}")

    def base(self) -> float:
        """Of the model without the LoRA."""
        with self.model.disable_adapter():
            return self._measure()

    def of(self, tensors: Tensors) -> float:
        """Of the model with these for the LoRA's tensors, by PEFT's names."""
        set_peft_model_state_dict(self.model, dict(tensors))
        return self._measure()

    def _measure(self) -> float:
        return perplexity(self.model, self.tokenizer, self.texts, self.ctx_size)


def perplexities(scorer: Scorer, candidates: Iterator[tuple[float, Tensors]]) -> dict[float, float]:
    """alpha -> perplexity, of each (alpha, the LoRA's tensors made with it)."""
    return {alpha: scorer.of(tensors) for alpha, tensors in candidates}
