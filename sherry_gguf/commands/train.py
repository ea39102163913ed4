"""Train a Sherry model with transformers' Trainer, from a configuration or on from trained weights."""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import fields
from typing import Any, Final, TypeVar

import datasets
from transformers import HfArgumentParser
from transformers.utils import logging

from sherry_gguf.commands import ways_out
from sherry_gguf.commands.help_page import groups
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


USAGE = "--model DIR --data FILE ... --out DIR [FLAG ...]"

EXAMPLES = (
    "sherry-gguf train --model model --data text.txt --out trained --learning-rate 1e-4",
    "sherry-gguf train --model model --data a.jsonl b.parquet --out trained --eval-data held-out.txt",
    "sherry-gguf train --model model --data text.txt --out trained --resume-from-checkpoint true",
)

# What the page shows: fields of Options, and flags of the library's, with their values and words of the page's length.
_OWN: Final = {
    "basic": ("model", "data", "ctx_size"),
    "output": ("out", "save_dtype"),
    "checks": ("eval_data", "measure_steps"),
    "expert": (
        *("method", "granularity", "group_size", "sherry_layers"),
        *("arenas_max", "arenas_warmup", "arenas_end"),
        *("teacher", "teacher_weight", "teacher_temperature"),
    ),
}
_OFTEN: Final = {
    "basic": {
        "--learning-rate": ("X", "the largest; a trained model wants a tenth (default %(default)s)"),
        "--num-train-epochs": ("X", "times that all texts are read (default %(default)s)"),
        "--max-steps": ("N", "optimizer steps, instead of epochs"),
        "--per-device-train-batch-size": ("N", "blocks at a time (default %(default)s)"),
        "--gradient-accumulation-steps": ("N", "of these in a step (default %(default)s)"),
    },
    "output": {
        "--save-steps": ("N", "steps between two checkpoints (default %(default)s)"),
        "--resume-from-checkpoint": ("true|DIR", "go on from the last checkpoint in --out, or from another"),
    },
    "checks": {"--logging-steps": ("N", "steps between two lines of the log (default %(default)s)")},
    "expert": {"--lr-scheduler-type": ("NAME", "default %(default)s, which falls from --arenas-end on")},
}


class _Parser(HfArgumentParser):
    """A parser that has the fields of both dataclasses as flags. Its page shows those that are named above."""

    def __init__(self, **settings: Any) -> None:
        super().__init__((Options, Arguments), **settings)
        self.add_argument("-h", "--help", action="help")
        self.add_argument(
            "--help-all", action=_HelpAll, nargs=0, help="show the flags of transformers, too: all of them count"
        )

    def format_help(self) -> str:
        page = argparse.ArgumentParser(
            usage=self.usage, description=self.description, formatter_class=self.formatter_class, add_help=False
        )
        actions = {flag: action for action in self._actions for flag in action.option_strings}
        for group, shown in vars(groups(page)).items():
            for name in _OWN[group]:
                action = actions[f"--{name}"]
                shown._add_action(_as_shown(action, action.option_strings[-1], action.metavar, action.help))
            for flag, (value, words) in _OFTEN[group].items():
                shown._add_action(_as_shown(actions[flag], flag, value, words))
            if group == "basic":
                shown._add_action(actions["--help-all"])
        return page.format_help()


def _as_shown(action: argparse.Action, flag: str, value: Any, words: str | None) -> argparse.Action:
    """An action under one of its names."""
    shown = copy.copy(action)
    shown.option_strings, shown.metavar, shown.help = [flag], value, words
    return shown


class _HelpAll(argparse.Action):
    """Prints the flags as argparse does it, of the library as well, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(super(_Parser, parser).format_help(), end="")  # type: ignore[misc]
        parser.exit()


new_parser = _Parser


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing more: ``new_parser`` has all."""


def execute(args: argparse.Namespace) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of reading and writing weights, which take no time
    if args.disable_tqdm is None:
        args.disable_tqdm = not sys.stderr.isatty()
    if args.disable_tqdm:
        datasets.disable_progress_bars()
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
