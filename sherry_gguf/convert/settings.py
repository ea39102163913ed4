"""What config.json sets beside the sizes: settings that llama.cpp does not compute, or that a GGUF file cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sherry_gguf.errors import SherryError

# llama.cpp computes x * sigmoid(x) in the feed-forward layers of these, whatever config.json says.
_SILU_ONLY = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "hunyuan-dense", "hunyuan-moe")
_SILU = ("silu", "swish")
QUANTIZATION = "quantization_config"


def with_architecture(hparams: dict[str, Any]) -> dict[str, Any]:
    """The settings, ``architectures`` being that of a causal LM of its model_type where config.json has none."""
    if hparams.get("architectures"):
        return hparams
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(hparams.get("model_type")))
    if found is None:
        raise SherryError(
            f"config.json has no architectures, and model_type {hparams.get('model_type')!r} names no causal LM"
        )
    return {**hparams, "architectures": [found]}


def require_computed(hparams: Mapping[str, Any], architecture: str) -> None:
    """Raise SherryError for an activation that llama.cpp does not compute in this architecture, as GGUF names it."""
    found = hparams.get("hidden_act", "silu")
    if architecture in _SILU_ONLY and found not in _SILU:
        raise SherryError(f"config.json: hidden_act is {found!r}, and llama.cpp computes silu in {architecture} models")


def notes(config: Mapping[str, Any], eos: int | None) -> Iterator[str]:
    """What is not in the file. eos: the end token that is."""
    found = config.get("eos_token_id")
    others = [token for token in found if token != eos] if isinstance(found, list) else []
    if others:
        yield (
            f"config.json names more end tokens than {eos}, which is the file's: {', '.join(map(str, others))}; "
            f"llama.cpp ends at those whose text it knows as an end of turn, and at no others"
        )
    if QUANTIZATION in config:
        yield f"ignored {QUANTIZATION} of config.json: the weights are not quantized"
