"""What config.json sets beside the sizes: settings that llama.cpp does not compute, or that a GGUF file cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sherry_gguf.checkpoint.declared import BITNET, architecture, is_first_bitnet
from sherry_gguf.checkpoint.packed import is_bitnet
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


def require_graph(config: Mapping[str, Any], where: Path) -> None:
    """Raise SherryError for a model that llama.cpp has under its architecture's name, and computes otherwise.

    Asked before any weight is read. where: what messages name.
    """
    found = architecture(config)
    # transformers' BitNet has relu squared where config.json says nothing
    activation = config.get("hidden_act", "silu" if is_first_bitnet(config) else "relu2")
    if found in BITNET and activation not in _SILU:
        raise SherryError(
            f"{where}: is {found} with the activation {activation}, as Microsoft's BitNet b1.58 2B4T is; llama.cpp's "
            f"graph of that name computes silu, and its converter reads a SentencePiece tokenizer alone"
        )
    quantization = config.get(QUANTIZATION)
    if isinstance(quantization, Mapping) and quantization.get("use_rms_norm"):
        raise SherryError(
            f"{where}: has a norm before each linear layer (use_rms_norm), for which llama.cpp has no place in {found}"
        )


def require_computed(hparams: Mapping[str, Any], architecture: str) -> None:
    """Raise SherryError for an activation that llama.cpp does not compute in this architecture, as GGUF names it."""
    found = hparams.get("hidden_act", "silu")
    if architecture in _SILU_ONLY and found not in _SILU:
        raise SherryError(f"config.json: hidden_act is {found!r}, and llama.cpp computes silu in {architecture} models")


def name_an_end(instance: Any, config: Mapping[str, Any]) -> None:
    """Where config.json has a list of end tokens, upstream's converter writes none that the tokenizer does not name."""
    found = config.get("eos_token_id")
    if isinstance(found, list) and found and end_token(instance) is None:
        instance.gguf_writer.add_eos_token_id(found[0])


def end_token(instance: Any) -> int | None:
    """The end token that will be in the file, None for a file that has none."""
    (metadata,) = instance.gguf_writer.kv_data
    field = metadata.get("tokenizer.ggml.eos_token_id")
    return None if field is None else int(field.value)


def notes(config: Mapping[str, Any], eos: int | None) -> Iterator[str]:
    """What is not in the file. eos: the end token that is."""
    found = config.get("eos_token_id")
    others = [token for token in found if token != eos] if isinstance(found, list) else []
    if others:
        yield (
            f"config.json names more end tokens than {eos}, which is the file's: {', '.join(map(str, others))}; "
            f"llama.cpp ends at those whose text it knows as an end of turn, and at no others"
        )
    if QUANTIZATION in config and not is_bitnet(config):
        yield f"ignored {QUANTIZATION} of config.json: the weights are not quantized"
