"""What a training can be told: Sherry's own options, and transformers' with defaults that fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sherry_gguf.checkpoint.declared import SHERRY_LAYERS, check_regex
from sherry_gguf.errors import SherryError
from sherry_gguf.train.arenas import END, WARMUP
from sherry_gguf.train.layers import METHODS
from sherry_gguf.weights.granularity import SHARINGS, Granularity, parse_granularity

FLOAT = "float"  # the method of a plain model
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def _help(text: str, value: str | None = None, choices: Iterable[str] = ()) -> dict[str, Any]:
    """text, and how a help page calls the value."""
    named = {} if value is None else {"metavar": value}
    return {"help": text, **named, **({"choices": list(choices)} if choices else {})}


class OutOfRange(SherryError):
    """A value that no training can have. setting: the field of Options."""

    def __init__(self, setting: str, saw: str) -> None:
        super().__init__(f"{setting} {saw}")
        self.setting = setting


@dataclass
class Options:
    """Sherry's own. Field names are the flags of the command line, but for hyphens.

    Where granularity, group_size and sherry_layers are None, what the model's config.json declares counts.
    """

    model: Path = field(metadata=_help("a model; or config.json and tokenizer alone: from scratch", "DIR"))
    data: list[Path] = field(metadata=_help("texts to train on: .txt, .jsonl, .parquet", "FILE"))
    out: Path = field(metadata=_help("directory to write: latents, tokenizer, logs, checkpoints", "DIR"))
    eval_data: list[Path] = field(default_factory=list, metadata=_help("texts, .txt, to measure perplexity on", "FILE"))
    ctx_size: int = field(default=512, metadata=_help("tokens in a block", "N"))
    method: str = field(
        default="sherry",
        metadata=_help(f"sherry; to compare {', '.join([*METHODS, FLOAT][1:])}", "NAME", [*METHODS, FLOAT]),
    )
    granularity: str | None = field(
        default=None, metadata=_help("weights that share a scale: %(choices)s", "SHARING", SHARINGS)
    )
    group_size: int | None = field(default=None, metadata=_help("weights per scale for per_group", "N"))
    sherry_layers: str | None = field(default=None, metadata=_help("regex of the layers that are quantized", "REGEX"))
    arenas_max: float = field(
        default=0.0, metadata=_help("largest lambda of Arenas; 0, the default, trains without it", "X")
    )
    arenas_warmup: float = field(default=WARMUP, metadata=_help("share of the steps in which lambda rises", "X"))
    arenas_end: float = field(default=END, metadata=_help("share of the steps from which on lambda is 0", "X"))
    teacher: Path | None = field(default=None, metadata=_help("a model to distil from", "DIR"))
    teacher_weight: float = field(default=1.0, metadata=_help("the teacher's share of the loss", "X"))
    teacher_temperature: float = field(default=1.0, metadata=_help("of teacher and student", "X"))
    measure_steps: int = field(default=0, metadata=_help("measure gradients and latents every N steps; 0: never", "N"))
    save_dtype: str = field(default="bfloat16", metadata=_help("of the latents in the final model", "TYPE", DTYPES))

    def scales(self, config: Any) -> Granularity:
        """The granularity asked for, else what a model's config declares, else the default; SherryError for none."""
        if self.granularity is None and self.group_size is None:
            if getattr(config, "quant_method", None) == "sherry":
                return parse_granularity(config.granularity, config.group_size)
            return Granularity()
        size = Granularity().group_size if self.group_size is None else self.group_size
        return parse_granularity(self.granularity or "per_group", size)

    def layers(self, config: Any) -> str:
        """The regex of the layers to quantize: asked for, else declared, else the decoder's linear layers."""
        return check_regex(self.sherry_layers or getattr(config, "sherry_layers", None) or SHERRY_LAYERS)

    def check(self) -> None:
        """Raise SherryError for values that no training can have, OutOfRange for numbers."""
        self.scales(None)
        self.layers(None)
        for name, low, high in (
            ("ctx_size", 3, 1 << 20),
            ("arenas_max", 0, 100),
            ("arenas_warmup", 0, 1),
            ("arenas_end", 0, 1),
            ("teacher_weight", 0, 1),
            ("teacher_temperature", 1e-3, 1e3),
            ("measure_steps", 0, 1 << 40),
        ):
            if not low <= getattr(self, name) <= high:
                raise OutOfRange(name, f"{getattr(self, name)} is not in {low}..{high}")


@dataclass
class Arguments(TrainingArguments):
    """transformers' TrainingArguments, with defaults for a training without Arenas (docs/training.md)."""

    learning_rate: float = field(default=1e-3, metadata=_help("the largest; a model that is trained wants a tenth"))
    lr_scheduler_type: str = field(
        default="warmup_stable_decay", metadata=_help("this one falls from --arenas-end on, with Arenas or without")
    )
    warmup_steps: float = field(default=0.05, metadata=_help("steps in which the rate rises; below 1: a share"))
    bf16: bool = field(
        # A CPU without matrix units has no fast product of bfloat16: a step takes 1.6 times as long as in float32.
        default=torch.accelerator.is_available(),
        metadata=_help("multiply in bfloat16; weights and optimizer stay float32; the default with an accelerator"),
    )
    logging_steps: float = field(default=10, metadata=_help("steps between two lines of the log"))
    logging_first_step: bool = field(default=True, metadata=_help("so that a short run has a log, too"))
    report_to: str = field(default="none", metadata=_help("as in transformers"))

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu, self.dataloader_pin_memory = True, False
        super().__post_init__()
