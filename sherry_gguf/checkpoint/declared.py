"""What a checkpoint says of its training.

The published trainer's branch ``sherry`` writes the quantizer's settings into config.json: ``quant_method``, ``N``,
``M``, ``granularity``, ``group_size``. AngelSlim's ``main`` writes them to angelslim_config.json, if anywhere, and its
quantizers leave buffers among the tensors. This project adds the keys ``sherry_layers`` and ``sherry_grid``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.formats.groups import GRIDS, Grid
from sherry_gguf.weights.granularity import Granularity, parse_granularity
from sherry_gguf.weights.refusal import SHERRY_METHOD, foreign_method

# The linear layers of a decoder block, as the architectures that Sherry is trained on name them, dense or expert.
SHERRY_LAYERS: Final = (
    r"\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|experts\.\d+\.w[123])"
    r"(\.weight)?$"
)

# Modules of AngelSlim's fake quantizers, of whose buffers none is a weight: scale, zero_point, gamma, clip factors.
_QUANTIZERS: Final = ("weight_quantizer.", "act_quantizer.", "qkv_quantizer.", "input_quantizer.")
KV_CACHE_SCALES: Final = "kv_cache_scales.safetensors"  # beside the model: scales of a quantized cache
_ANGELSLIM_CONFIG: Final = "angelslim_config.json"


def is_quantizer_buffer(name: str) -> bool:
    """Whether a stored tensor belongs to a fake quantizer and not to the model."""
    return any(module in name for module in _QUANTIZERS)


def granularity(config: Mapping[str, Any], where: Path) -> Granularity | None:
    """What config.json says of Sherry's scales; None where it says nothing of quantization.

    where: the file, for messages. Raises SherryError where it names another method, or is incomplete.
    """
    method = config.get("quant_method")
    if method is None:
        return None
    with naming(str(where)):
        if method != SHERRY_METHOD:
            raise foreign_method(method, "quant_method")
        sparsity = config.get("N", 3), config.get("M", 4)
        if sparsity != (3, 4):
            raise SherryError(f"the sparsity is {sparsity[0]}:{sparsity[1]}; SHERRY holds 3:4 only")
        return parse_granularity(config.get("granularity"), config.get("group_size"))


def grid(config: Mapping[str, Any], where: Path) -> Grid:
    """Which weights make a group: neighbours, as the published trainer has it, or config.json's ``sherry_grid``.

    Raises SherryError for a key that names no grid.
    """
    found = config.get("sherry_grid", "consecutive")
    if found not in GRIDS:
        raise SherryError(f"{where}: sherry_grid is {found!r}, none of {', '.join(GRIDS)}")
    return cast(Grid, found)


def layers(config: Mapping[str, Any], where: Path) -> str:
    """The regex of the quantized layers' names: SHERRY_LAYERS, or config.json's own key ``sherry_layers``.

    Raises SherryError where that is no regular expression.
    """
    found = config.get("sherry_layers", SHERRY_LAYERS)
    with naming(str(where)):
        if not isinstance(found, str):
            raise SherryError(f"sherry_layers is {found!r}, not a regular expression")
        return check_regex(found)


def require_no_other_method(directory: Path, buffers: Iterable[str], load: Callable[[str], torch.Tensor]) -> None:
    """Raise SherryError if AngelSlim's own file or its quantizers' buffers tell of another method than Sherry.

    Sherry, absmean and twn leave a scale that is 1 and means nothing; lsq, seq and dlt learn theirs, dlt a gamma too.
    """
    if (directory / _ANGELSLIM_CONFIG).is_file():
        method = _special_method(read_json(directory / _ANGELSLIM_CONFIG))
        if method not in (None, SHERRY_METHOD):
            raise foreign_method(method, f"{directory / _ANGELSLIM_CONFIG}: quant_method")
    of_weights = [name for name in buffers if "weight_quantizer." in name]
    gamma = next((name for name in of_weights if name.endswith(".gamma")), None)
    if gamma is not None:
        raise foreign_method("dlt", f"the method of {gamma}")
    scale = next((name for name in of_weights if name.endswith(".scale")), None)
    if scale is not None and (load(scale) != 1).any():
        raise SherryError(
            f"{scale} is a learned scale, as the methods lsq and seq have it and Sherry has not; "
            f"only Sherry's weights are converted"
        )


def _special_method(config: Mapping[str, Any]) -> object:
    """compression_config.(QAD|QAT).plugin_config.quant_config.special.quant_method, None if it is not there."""
    compression = config.get("compression_config")
    for trainer in ("QAD", "QAT"):
        found: Any = compression
        for key in (trainer, "plugin_config", "quant_config", "special", "quant_method"):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return cast(object, found)
    return None


def check_regex(pattern: str) -> str:
    """The pattern itself; SherryError if it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise SherryError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern
