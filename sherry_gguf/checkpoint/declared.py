"""What a checkpoint says of its training.

The published trainers' branches ``sherry`` and ``tequila`` write the quantizer's settings into config.json:
``quant_method``, ``N``, ``M``, ``granularity``, ``group_size``, ``eps``. AngelSlim's ``main`` writes them to
angelslim_config.json, if anywhere, and its quantizers leave buffers among the tensors. BitNet is told by the
architecture of its first code, or by transformers' ``quantization_config``. This project adds the keys
``sherry_layers`` and ``sherry_grid``.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import regex
import torch

from sherry_gguf.checkpoint.json_file import read_json
from sherry_gguf.checkpoint.packed import is_bitnet
from sherry_gguf.errors import SherryError, naming
from sherry_gguf.formats.groups import GRIDS, Grid
from sherry_gguf.weights.granularity import Granularity, parse_granularity
from sherry_gguf.weights.refusal import SHERRY_METHOD, foreign_method
from sherry_gguf.weights.ternary import Method, Rule

# The linear layers of a decoder block, as the architectures that Sherry is trained on name them, dense or expert.
SHERRY_LAYERS: Final = (
    r"\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|experts\.\d+\.w[123])"
    r"(\.weight)?$"
)

# Modules of AngelSlim's fake quantizers, of whose buffers none is a weight: scale, zero_point, gamma, clip factors.
_QUANTIZERS: Final = ("weight_quantizer.", "act_quantizer.", "qkv_quantizer.", "input_quantizer.")
KV_CACHE_SCALES: Final = "kv_cache_scales.safetensors"  # beside the model: scales of a quantized cache
_ANGELSLIM_CONFIG: Final = "angelslim_config.json"
DEAD_GAIN: Final = ".Lambada"  # as Tequila's third version calls the gains of dead weights, which belong to the layer

# quant_method of the trainers -> Rule.method. ultraquantv2 and v3 are Tequila's second and third version.
_DENSE: Final[dict[object, Method]] = {
    "absmean": "absmean",
    "twn": "twn",
    "tequila": "tequila",  # this project's trainer
    "ultraquantv2": "tequila",
    "ultraquantv3": "tequila",
}
_OWN_GAINS: Final = "ultraquantv3"
_FIRST_BITNET: Final = "BitnetForCausalLM"
BITNET: Final = (_FIRST_BITNET, "BitNetForCausalLM")  # the first code's, and transformers'


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


def dense_rule(config: Mapping[str, Any], where: Path, saved_to: Path) -> Rule | None:
    """How latents become dense ternary weights; None where nothing says that they do.

    where: of config.json; saved_to: the trainer's output directory. Raises SherryError for incomplete settings.
    """
    settings: Mapping[str, Any] = config
    if config.get("quant_method") is None and (saved_to / _ANGELSLIM_CONFIG).is_file():
        where = saved_to / _ANGELSLIM_CONFIG
        settings = _special(read_json(where))
    said = settings.get("quant_method")
    if (method := _DENSE.get(said) if isinstance(said, str) else None) is not None:
        with naming(str(where)):
            sharing = str(settings.get("granularity", "per_group")).replace("-", "_")
            shared = parse_granularity(sharing, settings.get("group_size", 128))
            return Rule(method, shared, None if said == _OWN_GAINS or method != "tequila" else _dead_gain(settings))
    return Rule("bitnet") if said is None and (is_bitnet(config) or architecture(config) in BITNET) else None


def is_first_bitnet(config: Mapping[str, Any]) -> bool:
    """Whether the model is one of the first BitNet b1.58, whose code is not transformers'."""
    return architecture(config) == _FIRST_BITNET


def architecture(config: Mapping[str, Any]) -> object:
    """The first of config.json's ``architectures``; None without any."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names else None


def _dead_gain(settings: Mapping[str, Any]) -> float:
    gain = settings.get("eps")
    if not isinstance(gain, int | float) or isinstance(gain, bool) or not math.isfinite(gain):
        raise SherryError(f"eps is {gain!r}, and Tequila's bias is that times the dead weights")
    return float(gain)


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
        method = _special(read_json(directory / _ANGELSLIM_CONFIG)).get("quant_method")
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


def _special(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """compression_config.(QAD|QAT).plugin_config.quant_config.special, empty if it is not there."""
    compression = config.get("compression_config")
    for trainer in ("QAD", "QAT"):
        found: Any = compression
        for key in (trainer, "plugin_config", "quant_config", "special"):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return {}


def check_regex(pattern: str) -> str:
    """The pattern itself; SherryError if it is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise SherryError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


_MATCHING_TIME: Final = 5.0  # seconds for the names of a model; a usual regex takes milliseconds
_LONGEST: Final = 1 << 14  # characters of a regex
_REPEATS: Final = 10_000  # all counts of a regex times each other: what its engine may have to write out


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches. SherryError if that takes too long: the pattern may have come with the model.

    ``re`` cannot be stopped, and some short patterns would take it years.
    """
    counts = (int(count) for braces in re.findall(r"\{([^{}]*)\}", pattern) for count in re.findall(r"\d{1,9}", braces))
    if len(pattern) > _LONGEST or math.prod(max(count, 1) for count in counts) > _REPEATS:
        raise SherryError(f"{pattern[:100]!r} is too large a regular expression; name the layers simply")
    deadline = time.monotonic() + _MATCHING_TIME
    try:
        search = regex.compile(pattern).search
        return [name for name in names if search(name, timeout=max(deadline - time.monotonic(), 0.001)) is not None]
    except TimeoutError:
        raise SherryError(f"{pattern!r} takes too long to match the tensors' names; name the layers simply") from None
    except (regex.error, RecursionError) as error:
        raise SherryError(f"{pattern!r} is no regular expression: {error}") from None


# Where config.json has the settings of the language model, and how it calls the number of its layers.
_TEXT: Final = ("text_config", "llm_config", "language_config", "thinker_config")
_LAYERS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_nextn_predict_layers")
_NUMBER: Final = re.compile(r"(?:^|\.)(\d+)\.")
_SPARE_LAYERS: Final = 64  # a checkpoint in parts has fewer than it says, and layers may share their weights


def require_counts(config: Mapping[str, Any], where: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SherryError for a number of layers or tokens that the tensors do not back: much would be built from it.

    shapes: of the stored tensors, by name.
    """
    settings = [config, *(config[key] for key in _TEXT if isinstance(config.get(key), Mapping))]
    settings += [part["text_config"] for part in settings[1:] if isinstance(part.get("text_config"), Mapping)]
    layers = len({found[1] for name in shapes if (found := _NUMBER.search(name))})
    rows = max((shape[0] for shape in shapes.values() if len(shape) == 2), default=0)
    for part in settings:
        for key in _LAYERS:
            if _count(part, key) > 2 * layers + _SPARE_LAYERS:
                raise SherryError(f"{where}: {key} is {part[key]}, and the tensors are those of {layers} layers")
        if _count(part, "vocab_size") > rows:
            raise SherryError(f"{where}: vocab_size is {part['vocab_size']}, and no tensor has more than {rows} rows")


def _count(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    return value if isinstance(value, int | float) else 0
