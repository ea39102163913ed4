"""One training, from directories to a directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from sherry_gguf import llama_cpp
from sherry_gguf.convert.vocabulary import require_vocabulary
from sherry_gguf.errors import SherryError, Way
from sherry_gguf.llama_cpp.cache import say
from sherry_gguf.train.arenas import ArenasCallback
from sherry_gguf.train.data import token_blocks
from sherry_gguf.train.directory import copy_tokenizer, open_model, save
from sherry_gguf.train.evaluate import perplexity
from sherry_gguf.train.layers import quantize_model
from sherry_gguf.train.measures import MeasuresCallback
from sherry_gguf.train.options import DTYPES, FLOAT, Arguments, Options
from sherry_gguf.train.pace import PaceCallback
from sherry_gguf.train.plot import plot_log
from sherry_gguf.train.trainer import Teacher, Trainer

MEASURES = "measures.jsonl"
PICTURE = "training.png"


@dataclass(frozen=True)
class Result:
    """loss: mean over the steps made, nats a token. perplexity: of the saved model on eval_data, None without any."""

    loss: float
    perplexity: float | None


def train(options: Options, arguments: Arguments) -> Result | None:
    """Train and write ``options.out``: a checkpoint that ``sherry-gguf convert`` takes, trainer_state.json with the
    log, training.png, measures.jsonl if asked for, and the Trainer's own checkpoint-N to resume from.

    Under torchrun or accelerate every process calls it, and the first one writes and gets the Result.
    Raises SherryError for options that do not fit each other or the model, for an ``out`` that is not empty unless the
    run is resumed, for one that has nothing to resume from, for an evaluation without ``eval_data``, and for a Sherry
    model that llama.cpp's converter would not take; its source is fetched for that, if it is not there.
    """
    options.check()
    if (arguments.eval_strategy != "no" or arguments.eval_on_start) and not options.eval_data:
        raise SherryError("no texts are given that the training could be evaluated on", Way.EVAL_DATA)
    resume = _resume(arguments.resume_from_checkpoint)
    _require_free(options.out, resume)
    arguments.output_dir = str(options.out)
    set_seed(arguments.seed)  # before weights are drawn, so that a seed names a run
    model, tokenizer = open_model(options.model)
    model.config.use_cache = False
    _quantize(model, options)
    if options.method == "sherry":
        _require_convertible(options.model)
    with arguments.main_process_first(desc="tokenizing"):
        blocks = token_blocks(options.data, tokenizer, options.ctx_size)
        held_out = token_blocks(options.eval_data, tokenizer, options.ctx_size) if options.eval_data else None

    callbacks, extras = _callbacks(options)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        eval_dataset=held_out,
        callbacks=[*callbacks, _TokenizerBeside(options.model)],
        teacher=_teacher(options, model),
        arenas_end=options.arenas_end,
        extras=extras,
    )
    outcome = trainer.train(resume_from_checkpoint=resume)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # asked of all processes: each may hold a part
    if not trainer.is_world_process_zero():
        return None
    save(model, state, options.model, options.out, DTYPES[options.save_dtype])
    trainer.save_state()
    plot_log(trainer.state.log_history, options.out / PICTURE)
    return Result(outcome.training_loss, evaluate(options) if options.eval_data else None)


def _require_convertible(directory: Path) -> None:
    """Raise SherryError if the trained model could not be converted; say so if that cannot be told here."""
    try:
        llama_cpp.use_pinned_gguf()
    except (SherryError, OSError) as error:
        say(f"whether the trained model can be converted to GGUF is not known yet: {error}")
        return
    require_vocabulary(directory)


def evaluate(options: Options) -> float:
    """Perplexity of the model saved in ``options.out`` on its ``eval_data``, in float32."""
    model, tokenizer = open_model(options.out)
    _quantize(model, options)
    return perplexity(model.eval(), tokenizer, options.eval_data, options.ctx_size)


def _quantize(model: Any, options: Options) -> None:
    if options.method != FLOAT:
        quantize_model(model, options.method, options.scales(model.config), options.layers(model.config))
    elif hasattr(model.config, "quant_method"):
        raise SherryError(
            f"{options.model} declares {model.config.quant_method} layers: they would not stay such as float"
        )


class _TokenizerBeside(TrainerCallback):
    """Completes each of the Trainer's checkpoints, so that ``sherry-gguf convert`` takes them too."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            copy_tokenizer(self.source, Path(args.output_dir, f"checkpoint-{state.global_step}"))


def _callbacks(options: Options) -> tuple[list[TrainerCallback], dict[str, tuple[TrainerCallback, str]]]:
    """The callbacks, and which of their attributes go into the log by which name."""
    pace = PaceCallback(options.ctx_size)
    callbacks: list[TrainerCallback] = [pace]
    extras: dict[str, tuple[TrainerCallback, str]] = {
        "tokens_per_second": (pace, "tokens_per_second"),
        "seconds_left": (pace, "seconds_left"),
    }
    if options.method == "sherry" and options.arenas_max:
        arenas = ArenasCallback(options.arenas_max, options.arenas_warmup, options.arenas_end)
        callbacks.append(arenas)
        extras["lambda"] = arenas, "current"
    if options.measure_steps:
        measures = MeasuresCallback(options.out / MEASURES, options.measure_steps)
        callbacks.append(measures)
        extras["effective_rank"] = measures, "effective_rank"
    return callbacks, extras


def _teacher(options: Options, student: Any) -> Teacher | None:
    if options.teacher is None:
        return None
    model, _ = open_model(options.teacher)
    if model.config.vocab_size != student.config.vocab_size:
        raise SherryError(
            f"{options.teacher} has {model.config.vocab_size} tokens, {options.model} {student.config.vocab_size}; "
            f"a teacher needs the same vocabulary"
        )
    return Teacher(model, options.teacher_weight, options.teacher_temperature)


def _resume(value: str | None) -> str | bool | None:
    """A directory, or true for the last one in ``out``; None for a new training."""
    return True if value is not None and value.lower() == "true" else value


def _require_free(out: Path, resumed: str | bool | None) -> None:
    if out.exists() and not out.is_dir():
        raise SherryError(f"{out} is a file", Way.OTHER_DIRECTORY)
    if resumed is True and (not out.is_dir() or get_last_checkpoint(out) is None):
        raise SherryError(f"{out} has no checkpoint to go on from", Way.START_ANEW)
    if not resumed and out.is_dir() and any(out.iterdir()):
        raise SherryError(f"{out} is not empty", Way.OTHER_DIRECTORY, Way.RESUME)
