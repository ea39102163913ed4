"""Train a Sherry model with transformers' Trainer: from a configuration, or on from trained weights.

Beside the flags up to --save-dtype, which are Sherry's own, all of transformers' TrainingArguments count.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, TypeVar

from transformers import HfArgumentParser
from transformers.utils import logging

from sherry_gguf.commands import ways_out
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.train.options import Arguments, Options, OutOfRange
from sherry_gguf.train.training import train

T = TypeVar("T")

WAYS = {
    **ways_out.SOURCE,
    Way.NAME_LAYERS: "name those to quantize (--sherry-layers REGEX)",
    Way.CONTEXT: "take another --ctx-size",
    Way.OTHER_DIRECTORY: "choose another --out",
    Way.RESUME: "go on with --resume-from-checkpoint true",
    Way.KNOWN_TOKENIZER: "start from one whose tokenizer llama.cpp's converter knows (--model DIR)",
    Way.EVAL_DATA: "name them (--eval-data FILE)",
    Way.START_ANEW: "leave --resume-from-checkpoint out",
}


def new_parser(**kwargs: Any) -> argparse.ArgumentParser:
    """A parser that has the fields of both dataclasses as flags."""
    parser: argparse.ArgumentParser = HfArgumentParser((Options, Arguments), **kwargs)
    return parser


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing more: ``new_parser`` has all."""


def execute(args: argparse.Namespace) -> int:
    logging.set_verbosity_error()
    try:
        arguments = _filled(Arguments, args)
    except (ValueError, ImportError) as error:  # TrainingArguments that do not fit each other or the machine
        raise SherryError(" ".join(str(error).split())) from error
    try:
        result = train(_filled(Options, args), arguments)
    except OutOfRange as error:
        raise SherryError(error.saw.replace(error.setting, f"--{error.setting.replace('_', '-')}", 1)) from error
    if result is not None:
        print(f"wrote {args.out}, mean loss {result.loss:.4f}")
    if result is not None and result.perplexity is not None:
        print(f"held-out perplexity {result.perplexity:.4f}, context {args.ctx_size}")
    return 0


def _filled(options_class: type[T], args: argparse.Namespace) -> T:
    return options_class(**{field.name: getattr(args, field.name) for field in fields(options_class) if field.init})  # type: ignore[arg-type]
