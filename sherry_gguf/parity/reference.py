"""The checkpoint in PyTorch: transformers' own model in fp32, its Sherry layers holding the trained forward's weights.

The layers are replaced in the checkpoint's tensors, by their stored names, and not in the model: transformers fuses
and stacks tensors of some architectures (the experts of Qwen3-MoE) while it loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitNetConfig

from sherry_gguf.checkpoint import Checkpoint
from sherry_gguf.checkpoint.declared import is_first_bitnet
from sherry_gguf.checkpoint.tokens import tokenize as tokenize
from sherry_gguf.checkpoint.tokens import transformers_errors
from sherry_gguf.convert.bake import bake, bias_name, bias_of
from sherry_gguf.convert.plan import Plan
from sherry_gguf.convert.settings import QUANTIZATION
from sherry_gguf.errors import SherryError, naming

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def trained_weights(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    fp16_scales: bool = False,
    chosen: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint in float32, Sherry layers as the trained forward has them: sign * alpha, or 0.

    fp16_scales: alpha rounded as in a GGUF, to tell what that rounding alone does.
    chosen: the weights of calibrated layers, which the checkpoint does not have.
    """
    tensors = {}
    for name in checkpoint.names:
        if chosen and name in chosen:
            tensors[name] = chosen[name]
            continue
        tensor, layer = checkpoint.load(name), plan.layers.get(name)
        if layer is not None:
            with naming(name):
                tensor = bake(tensor, layer, plan.granularity, fp16_scales=fp16_scales, strict=False)
        tensors[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    if plan.rule is not None and plan.rule.has_bias:
        tensors |= {bias_name(name): bias_of(checkpoint, name, plan.rule) for name in plan.layers}
    return tensors


def open_trained(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    fp16_scales: bool = False,
    chosen: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """transformers' model of the checkpoint in float32, for evaluation, with the weights of ``trained_weights``.

    Takes 4 bytes of memory a weight, twice while it loads. Raises SherryError for an architecture that transformers
    does not know, and for a checkpoint that lacks some of the model's tensors.
    """
    with transformers_errors(checkpoint.directory, "no model of this config.json"):
        config = _config(checkpoint)
        if hasattr(config, QUANTIZATION):
            delattr(config, QUANTIZATION)  # the weights come as floats, whatever they were
        if plan.rule is not None and plan.rule.has_bias:
            config.attention_bias = config.mlp_bias = True
        with torch.device("meta"):
            model_class = type(AutoModelForCausalLM.from_config(config))
    tensors = trained_weights(checkpoint, plan, fp16_scales=fp16_scales, chosen=chosen)
    if is_first_bitnet(checkpoint.config):
        tensors = {_in_transformers(name): tensor for name, tensor in tensors.items()}
    with transformers_errors(checkpoint.path, "does not fit its config.json"):
        model, loaded = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    del tensors
    if missing := sorted(loaded["missing_keys"]):
        raise SherryError(f"{checkpoint.path}: {len(missing)} tensors of the model are missing, as {missing[0]}")
    return model.eval()


def load(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    fp16_scales: bool = False,
    chosen: Mapping[str, torch.Tensor] | None = None,
    threads: int | None = None,
) -> Callable[[I32], F32]:
    """A function from the tokens of a chunk, int32[n], to its logits, float32[n, n_vocab], by ``open_trained``.

    threads: PyTorch's, of the whole process; None leaves them.
    """
    model = open_trained(checkpoint, plan, fp16_scales=fp16_scales, chosen=chosen)
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def logits(tokens: I32) -> F32:
        with transformers_errors(checkpoint.path, "cannot be run"):
            found: F32 = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
        return found

    return logits


# of the first BitNet's code, which is in its own folder, and of transformers, which has the same model
_NORMS = {"self_attn.inner_attn_ln": "self_attn.attn_sub_norm", "mlp.ffn_layernorm": "mlp.ffn_sub_norm"}


def _config(checkpoint: Checkpoint) -> Any:
    config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
    if is_first_bitnet(checkpoint.config):
        settings = {key: value for key, value in config.to_dict().items() if key != "model_type"}
        config = BitNetConfig(**settings)
    return config


def _in_transformers(name: str) -> str:
    for ours, theirs in _NORMS.items():
        name = name.replace(ours, theirs)
    return name
